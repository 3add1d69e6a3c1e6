{{/* What all pods have in common. Each takes a dictionary with `root`, and what it names itself. */}}

{{- define "toque.labels" -}}
app.kubernetes.io/name: toque
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "toque.name" -}}
{{- printf "%s-%s" .root.Release.Name .component | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "toque.image" -}}
{{- $image := .root.Values.image }}
{{- with $image.registry }}{{ . }}/{{ end }}toque-{{ .image }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end }}

{{- define "toque.secret" -}}
{{- .Values.secret.existing | default (printf "%s-settings" .Release.Name) }}
{{- end }}

{{- define "toque.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "toque.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "toque.pod" -}}
automountServiceAccountToken: false
serviceAccountName: {{ .account | default .root.Release.Name }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext: {{- include "toque.podSecurity" . | nindent 2 }}
{{- with .pool.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .pool.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
volumes:
  - name: data
    emptyDir: {sizeLimit: {{ .root.Values.storage.cacheSize }}}
  - name: tmp
    emptyDir: {}
  - name: shm
    emptyDir: {medium: Memory, sizeLimit: 1Gi}
  {{- if eq .image "fleet" }}
  - name: ray-logs  # KubeRay's name for it, by which its autoscaler finds it, too
    emptyDir: {}
  {{- end }}
  {{- if not .root.Values.storage.url }}
  - name: storage
    persistentVolumeClaim:
      claimName: {{ required "storage.url or storage.claim must say where files are" .root.Values.storage.claim }}
  {{- end }}
{{- end }}

{{- define "toque.container" -}}
image: {{ include "toque.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{- include "toque.containerSecurity" . | nindent 2 }}
envFrom:
  - configMapRef: {name: {{ .root.Release.Name }}-settings}
  {{- with .root.Values.storage.secret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
env:
  - name: TOQUE_DATABASE_URL
    valueFrom:
      secretKeyRef: {name: {{ include "toque.secret" .root }}, key: TOQUE_DATABASE_URL}
  {{- if has .image (list "engine" "fleet") }}
  - name: POD_IP
    valueFrom:
      fieldRef: {fieldPath: status.podIP}
  {{- end }}
  {{- if eq .image "engine" }}
  - {name: TOQUE_ENGINE_LISTEN, value: "0.0.0.0:8001"}
  - {name: TOQUE_ENGINE_URL, value: "http://$(POD_IP):8001"}
  {{- end }}
  {{- if eq .image "fleet" }}
  {{- include "toque.rayToken" . | nindent 2 }}
  {{- end }}
{{- $resources := deepCopy (.pool.resources | default dict) }}
{{- if .pool.gpus }}
{{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" .pool.gpus) ($resources.limits | default dict)) }}
{{- end }}
resources: {{ toJson $resources }}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
  {{- if eq .image "fleet" }}
  - {name: ray-logs, mountPath: /tmp/ray}
  {{- end }}
  {{- if not .root.Values.storage.url }}
  - {name: storage, mountPath: /storage}
  {{- end }}
{{- end }}

{{- define "toque.rayToken" -}}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ required "ray.tokenSecret must name a Secret with the cluster's token" .root.Values.ray.tokenSecret }}
      key: auth_token
{{- end }}

{{/* Prepares base models where they are not yet, each in a container of its own; takes `bases`, too. */}}
{{- define "toque.pulls" -}}
initContainers:
  {{- $parts := . }}
  {{- range $number, $base := .bases }}
  - name: pull-{{ $number }}
    {{- include "toque.container" $parts | nindent 4 }}
    args: [toque, models, pull, {{ $base | quote }}]
  {{- end }}
{{- end }}
