{{- define "ratelimiter.labels" -}}
app.kubernetes.io/name: ratelimiter
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.mode }}
{{- end }}
{{- define "ratelimiter.meta" -}}
{{ include "ratelimiter.labels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "ratelimiter.name" -}}
{{ printf "%s-ratelimiter" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
