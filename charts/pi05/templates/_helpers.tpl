{{/* What all kinds share. A kind's own file has what makes it different. */}}

{{- define "pi05.labels" -}}
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
ttlSecondsAfterFinished: {{ .Values.ttlSeconds | int }}
{{- with .Values.deadlineSeconds }}
activeDeadlineSeconds: {{ . | int }}
{{- end }}
podReplacementPolicy: Failed # only when the old pod is gone, so that no two write one run
{{- end }}

{{/* What a failed pod means for its Job; the first rule that matches counts. The argument is FailJob or FailIndex. */}}
{{- define "pi05.podFailurePolicy" -}}
podFailurePolicy:
  rules:
    - action: Ignore # evicted, preempted, node lost: a new pod, and no failure is counted
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    - action: {{ . }} # bad configuration, bad data, not learning: no retry can help
      onExitCodes:
        containerName: pi05
        operator: In
        values: [64, 65, 66, 67]
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
serviceAccountName: {{ .Values.serviceAccount | quote }}
automountServiceAccountToken: {{ has "pipeline" (list .Values.run.kind .Values.run.task) }} # only a pipeline talks to Kubernetes
enableServiceLinks: false
{{- with .Values.image.pullSecret }}
imagePullSecrets:
  - name: {{ . | quote }}
{{- end }}
{{- with .Values.priorityClass }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or .Values.tolerations .Values.resources.gpus.count }}
tolerations:
  {{- if .Values.resources.gpus.count }}
  - key: {{ .Values.resources.gpus.resource }}
    operator: Exists
    effect: NoSchedule
  {{- end }}
  {{- with .Values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
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
  {{- range $name, $value := .Values.env }}
  - name: {{ $name }}
    value: {{ $value | quote }}
  {{- end }}
resources:
  requests:
    cpu: {{ .Values.resources.cpu | quote }}
    memory: {{ .Values.resources.memory }}
    ephemeral-storage: {{ .Values.resources.scratch }}
    {{- with .Values.resources.gpus.count }}
    {{ $.Values.resources.gpus.resource }}: {{ . | int }}
    {{- end }}
  limits:
    memory: {{ .Values.resources.memory }}
    {{- with .Values.resources.gpus.count }}
    {{ $.Values.resources.gpus.resource }}: {{ . | int }}
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
{{- end }}
