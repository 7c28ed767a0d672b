"""What is missing before runs can run: small checks, each of which looks at one thing and says what it found.

finding   Finding, Check, and the engine that runs checks in parallel, after those that they need
cluster   what a run in a cluster depends on, seen from here
pods      the same, seen from a pod of each image
local     what a run on this machine depends on
"""
