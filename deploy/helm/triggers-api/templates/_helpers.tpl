{{- define "triggers.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "triggers.selector" -}}
app.kubernetes.io/name: triggers-api
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "triggers.labels" -}}
{{ include "triggers.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "triggers.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "triggers.secret" -}}
{{ .Values.existingSecret | default (include "triggers.name" .) }}
{{- end -}}

{{- define "triggers.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "triggers.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* A change of the configuration replaces the pods. */}}
{{- define "triggers.checksums" -}}
checksum/config: {{ .Values.config | toJson | sha256sum }}
checksum/secrets: {{ .Values.secrets | toJson | sha256sum }}
{{- end -}}

{{/* What all our pods have. */}}
{{- define "triggers.pod" -}}
serviceAccountName: {{ include "triggers.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
volumes:
  - name: tmp
    emptyDir: {}
{{- end -}}

{{/* What all our containers have. */}}
{{- define "triggers.container" -}}
image: {{ include "triggers.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- toYaml .Values.containerSecurityContext | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
{{- end -}}

{{/* How the settings reach the processes.  name: of the ConfigMap. */}}
{{- define "triggers.envFrom" -}}
- configMapRef: {name: {{ .name }}}
- secretRef: {name: {{ include "triggers.secret" .context }}}
{{- end -}}

{{- define "triggers.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
