{{/* The parts of templates/job.yaml, from the outside in. */}}

{{- define "pi05.labels" -}}
{{- with .Values.pod.labels }}
{{- toYaml . }}
{{ end -}}
app.kubernetes.io/name: pi05
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.run.version | quote }}
app.kubernetes.io/component: {{ .Values.run.kind }}
app.kubernetes.io/part-of: pi05
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
pi05.dev/run: {{ .Release.Name }}
pi05.dev/task: {{ .Values.run.task }}
pi05.dev/kind: {{ .Values.run.kind }}
{{- end }}

{{- define "pi05.annotations" -}}
{{- with .Values.pod.annotations }}
{{- toYaml . }}
{{ end -}}
pi05.dev/digest: {{ .Values.run.digest | quote }}
{{- with .Values.run.revision }}
pi05.dev/revision: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Of the Job. Kueue, when there is a queue, suspends and resumes it; nobody else touches `suspend`. */}}
{{- define "pi05.jobMetadata" -}}
name: {{ .Release.Name }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "pi05.labels" . | nindent 2 }}
  {{- with .Values.queue.name }}
  kueue.x-k8s.io/queue-name: {{ . | quote }}
  {{- end }}
  {{- with .Values.queue.priority }}
  kueue.x-k8s.io/priority-class: {{ . | quote }}
  {{- end }}
annotations:
  {{- include "pi05.annotations" . | nindent 2 }}
{{- end }}

{{/* Of the Job: its pods are numbered, by the index that becomes a shard's or a process's number. */}}
{{- define "pi05.jobSpec" -}}
completionMode: Indexed
completions: {{ .Values.pods | int }}
parallelism: {{ .Values.pods | int }}
{{- with .Values.deadlineSeconds }}
activeDeadlineSeconds: {{ . | int }}
{{- end }}
podReplacementPolicy: Failed # only when the old pod is gone, so that no two write one run
podFailurePolicy: # what a failed pod means for its Job; the first rule that matches counts
  rules:
    {{- include "pi05.podFailureRules" . | nindent 4 }}
template:
  metadata:
    {{- include "pi05.podMetadata" . | nindent 4 }}
  spec:
    {{- include "pi05.podSpec" . | nindent 4 }}
    containers:
      - name: pi05
        command: [/opt/pi05/bin/python, -m, {{ include "pi05.module" . }}]
        args:
          {{- include "pi05.arguments" . | nindent 10 }}
        {{- include "pi05.container" . | nindent 8 }}
{{- end }}

{{- define "pi05.podFailureRules" -}}
{{- $shards := has .Values.run.kind (list "demos" "eval") -}}
- action: {{ ternary "FailJob" "Ignore" (eq .Values.gang "jobset") }} # evicted, preempted, node lost: no failure is counted
  onPodConditions:
    - type: DisruptionTarget
      status: "True"
- action: {{ ternary "FailIndex" "FailJob" $shards }} # bad configuration, bad data, not learning: no retry can help
  onExitCodes:
    containerName: pi05
    operator: In
    values: [64, 65, 66, 67]
{{- if and (eq .Values.run.kind "train") (gt (.Values.pods | int) 1) }}
- action: Ignore # another pod of this training has ended, and that one counts
  onExitCodes:
    containerName: pi05
    operator: In
    values: [69]
{{- end }}
{{- end }}

{{/* Of a JobSet: what its Job, which ended with its first failed pod, means for it. */}}
{{- define "pi05.failureRules" -}}
- name: evicted # all start again, and it is not counted
  action: RestartJobSetAndIgnoreMaxRestarts
  onJobFailureReasons: [PodFailurePolicy]
  onJobFailureMessagePatterns: [condition DisruptionTarget]
- name: permanent
  action: FailJobSet
  onJobFailureReasons: [PodFailurePolicy]
- name: late # activeDeadlineSeconds
  action: FailJobSet
  onJobFailureReasons: [DeadlineExceeded]
{{- end }}

{{/* Of the container: the program of its kind. */}}
{{- define "pi05.module" -}}
{{- get (dict "demos" "pi05.jobs.demos" "train" "pi05.jobs.train" "eval" "pi05.jobs.evaluate" "pipeline" "pi05ctl.pipeline" "probe" "pi05.jobs.probe") .Values.run.kind -}}
{{- end }}

{{- define "pi05.arguments" -}}
{{- $several := gt (.Values.pods | int) 1 -}}
- /etc/pi05/job.json
{{- if ne .Values.run.kind "probe" }}
- --attempt=$(POD)
{{- end }}
{{- if has .Values.run.kind (list "demos" "eval") }}
- --shard=$(INDEX)
- --shards={{ .Values.pods | int }}
{{- end }}
{{- if eq .Values.run.kind "train" }}
{{- with .Values.resources.gpus.count }}
- --gpus={{ . | int }} # or it ends with 75: nobody wants to wait for a CPU
{{- end }}
{{- if $several }}
- --process=$(INDEX)
- --processes={{ .Values.pods | int }}
{{- $first := ternary (printf "%s-train-0-0" .Release.Name) (printf "%s-0" .Release.Name) (eq .Values.gang "jobset") }}
- --coordinator={{ $first }}.{{ .Release.Name }}:8476 # of jax.distributed: the pod with index 0
{{- end }}
{{- end }}
{{- end }}

{{- define "pi05.podMetadata" -}}
labels:
  {{- include "pi05.labels" . | nindent 2 }}
annotations:
  {{- include "pi05.annotations" . | nindent 2 }}
  kubectl.kubernetes.io/default-container: pi05
  cluster-autoscaler.kubernetes.io/safe-to-evict: "false" # a half-empty node is no reason to stop a run
{{- end }}

{{/* Of the pod, less its containers: passes Pod Security "restricted". A probe's run.task is the kind that it stands for. */}}
{{- define "pi05.podSpec" -}}
restartPolicy: Never # a new pod instead, which podFailurePolicy decides on
terminationGracePeriodSeconds: {{ .Values.graceSeconds | int }}
serviceAccountName: {{ .Values.pod.serviceAccountName | quote }}
automountServiceAccountToken: {{ has "pipeline" (list .Values.run.kind .Values.run.task) }} # only a pipeline talks to Kubernetes
enableServiceLinks: false
{{- if and (eq .Values.run.kind "train") (gt (.Values.pods | int) 1) (eq .Values.gang "job") }}
subdomain: {{ .Release.Name }} # of the service below: <run>-0.<run> is the pod with index 0
{{- end }}
{{- range $field := list "imagePullSecrets" "priorityClassName" "runtimeClassName" "schedulerName" "nodeSelector" "affinity" "topologySpreadConstraints" }}
{{- with get $.Values.pod $field }}
{{ $field }}:{{ if kindIs "string" . }} {{ . | quote }}{{ else }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- if or .Values.pod.tolerations .Values.resources.gpus.count }}
tolerations:
  {{- if .Values.resources.gpus.count }}
  - key: {{ .Values.resources.gpus.resource }}
    operator: Exists
    effect: NoSchedule
  {{- end }}
  {{- with .Values.pod.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
securityContext:
  {{- with .Values.pod.securityContext }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  runAsNonRoot: true
  runAsUser: 10001 # images/ have this user
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
  {{- end }}
volumes:
  - name: job
    configMap:
      name: {{ .Release.Name }}
  - name: tmp
    emptyDir:
      sizeLimit: 1Gi
  - name: scratch
    emptyDir:
      sizeLimit: {{ .Values.resources.scratch }}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: {{ .Values.resources.shm }}
  {{- with .Values.pod.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Of the only container, less its name, command and arguments. */}}
{{- define "pi05.container" -}}
image: {{ .Values.image.name }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: HOME
    value: /tmp
  - name: TMPDIR
    value: /scratch
  - name: POD
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: INDEX
    valueFrom:
      fieldRef:
        fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
  - name: SCRATCH_BYTES # what /scratch and the log may hold together; more, and the kubelet evicts the pod
    valueFrom:
      resourceFieldRef:
        containerName: pi05
        resource: requests.ephemeral-storage
  {{- range $name, $value := .Values.container.env }}
  - name: {{ $name }}
    {{- if kindIs "string" $value }}
    value: {{ $value | quote }}
    {{- else }}
    valueFrom:
      {{- toYaml $value | nindent 6 }}
    {{- end }}
  {{- end }}
{{- with .Values.container.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  requests:
    cpu: {{ .Values.resources.cpu | quote }}
    memory: {{ .Values.resources.memory }}
    ephemeral-storage: {{ .Values.resources.scratch }}
    {{- with .Values.resources.gpus.count }}
    {{ $.Values.resources.gpus.resource }}: {{ . | int }}
    {{- end }}
    {{- range $name, $count := .Values.resources.others }}
    {{ $name }}: {{ $count | int }}
    {{- end }}
  limits:
    memory: {{ .Values.resources.memory }}
    {{- range $name, $amount := .Values.resources.limits }}
    {{ $name }}: {{ $amount | quote }}
    {{- end }}
    {{- with .Values.resources.gpus.count }}
    {{ $.Values.resources.gpus.resource }}: {{ . | int }}
    {{- end }}
    {{- range $name, $count := .Values.resources.others }}
    {{ $name }}: {{ $count | int }}
    {{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
terminationMessagePath: /dev/termination-log # the last event: the verdict in a line
terminationMessagePolicy: FallbackToLogsOnError # or, if it died without words, the end of its log
volumeMounts:
  - name: job
    mountPath: /etc/pi05
    readOnly: true
  - name: tmp
    mountPath: /tmp
  - name: scratch
    mountPath: /scratch
  - name: shm
    mountPath: /dev/shm
  {{- with .Values.container.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
