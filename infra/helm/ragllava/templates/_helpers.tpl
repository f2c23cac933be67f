{{- define "ragllava.name" -}}
{{- if contains "ragllava" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-ragllava" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "ragllava.selector" -}}
app.kubernetes.io/name: ragllava
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* A selector of the pods of all workers. */}}
{{- define "ragllava.workers" -}}
matchLabels:
  {{- include "ragllava.selector" . | nindent 2 }}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: [maintenance, ingest, answer, train]}
{{- end }}

{{- define "ragllava.labels" -}}
{{ include "ragllava.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "ragllava.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "ragllava.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "ragllava.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Pods are replaced when the keys of the Secret change, as far as a cluster tells; settings are part of the pods. */}}
{{- define "ragllava.podMetadata" -}}
labels:
  {{- include "ragllava.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- $secret := lookup "v1" "Secret" .root.Release.Namespace .root.Values.existingSecret }}
  {{- /* Its version, not a hash: whoever reads pods could try passwords against that. */}}
  ragllava/secret: {{ printf "%s %s" .root.Values.existingSecret (($secret.metadata).resourceVersion | default "") | trim | quote }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "ragllava.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ragllava.container" -}}
image: {{ include "ragllava.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* The settings of the Secret: as variables, or as files of a folder (secretVolume, secretMount). */}}
{{- define "ragllava.secrets" -}}
{{- if .root.Values.secretsAsFiles }}
- name: RAGLLAVA_SETTINGS_DIR
  value: /run/secrets/ragllava
{{- else }}
{{- range .keys }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.root.Values.existingSecret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where traces are sent, of the server and the workers. */}}
{{- define "ragllava.traces" -}}
{{- with .Values.tracesEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "ragllava.secretMount" -}}
{{- if .Values.secretsAsFiles }}
- {name: secrets, mountPath: /run/secrets/ragllava, readOnly: true}
{{- end }}
{{- end }}

{{- define "ragllava.secretVolume" -}}
{{- if .root.Values.secretsAsFiles }}
- name: secrets
  secret:
    secretName: {{ .root.Values.existingSecret }}
    # For the group of the pod alone: 0440.
    defaultMode: 288
    items:
      {{- range .keys }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- end }}

{{- define "ragllava.settings" -}}
- name: HOME
  value: /var/lib/ragllava
- name: RAGLLAVA_HOME
  value: /var/lib/ragllava
{{- range $name, $value := .settings }}
- name: {{ $name }}
  {{- /* YAML's numbers are floats here, and a large one would become 1e+06. */}}
  value: {{ (and (kindIs "float64" $value) (eq (toString $value) (toString (floor $value)))) | ternary (int64 $value) $value | toString | quote }}
{{- end }}
{{- end }}

{{- define "ragllava.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
