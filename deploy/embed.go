// Package deploy has the one source of what runs firsthop in a cluster: the Helm chart in chart. What Render makes of it is
// what Helm makes of it; the files in manifests and runtime, and firsthop.yaml, are made by it too, and a test compares them.
package deploy

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

//go:embed chart
var chart embed.FS

// Namespace is where everything is, unless a Helm release is made elsewhere.
const Namespace = "kube-system"

// Values are the chart's: chart/values.yaml says what each is for.
type Values struct {
	Image            string  `json:"image"`
	ImagePullPolicy  string  `json:"imagePullPolicy"`
	Runtime          bool    `json:"runtime"`
	PauseImage       string  `json:"pauseImage"`
	ServiceIPs       string  `json:"serviceIPs"`
	Endpoints        string  `json:"endpoints"`
	KernelsBelow511  bool    `json:"kernelsBelow511"`
	HostProc         bool    `json:"hostProc"`
	LocalhostSeccomp string  `json:"localhostSeccomp"`
	PacketPath       bool    `json:"packetPath"`
	Metrics          Metrics `json:"metrics"`
}

// Metrics are the values about the port of the metrics.
type Metrics struct {
	Host       string `json:"host"`
	Port       int    `json:"port"`
	PodMonitor bool   `json:"podMonitor"`
}

// Defaults are the values of chart/values.yaml.
func Defaults() (Values, error) {
	var v Values
	text, err := chart.ReadFile("chart/values.yaml")
	if err == nil {
		err = yaml.UnmarshalStrict(text, &v)
	}
	if err != nil {
		return v, fmt.Errorf("read the chart's values: %w", err)
	}
	return v, nil
}

// templates are those of the chart that make objects, in the order in which the objects are applied.
var templates = []string{"rbac.yaml", "daemonset.yaml", "podmonitor.yaml"}

// Render makes the objects' YAML, with comments: for each template of the chart that makes any, in the
// order in which they are to be applied.
func Render(v Values) ([][]byte, error) {
	var files [][]byte
	for _, name := range templates {
		text, err := render(name, v)
		if err != nil {
			return nil, err
		}
		if len(text) > 0 {
			files = append(files, text)
		}
	}
	return files, nil
}

// functions are those of Helm's that the templates call.
var functions = template.FuncMap{
	"fail": func(why string) (string, error) { return "", errors.New(why) },
}

// render makes one file, which is empty where the values ask for none of its objects.
func render(name string, v Values) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, fmt.Errorf("render %s: %w", name, err) }
	source, err := chart.ReadFile(path.Join("chart/templates", name))
	if err != nil {
		return fail(err)
	}
	t, err := template.New(name).Option("missingkey=error").Funcs(functions).Parse(string(source))
	if err != nil {
		return fail(err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fail(err)
	}
	var values map[string]any // by the names of values.yaml, as Helm has them
	if err := json.Unmarshal(text, &values); err != nil {
		return fail(err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, map[string]any{"Values": values, "Release": map[string]any{"Namespace": Namespace}}); err != nil {
		return fail(err)
	}
	if strings.TrimSpace(out.String()) == "" {
		return nil, nil
	}
	return append(bytes.TrimRight(out.Bytes(), "\n"), '\n'), nil
}

// Documents splits YAML into its documents.
func Documents(text []byte) [][]byte { return bytes.Split(text, []byte("\n---\n")) }
