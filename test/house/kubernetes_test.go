package house

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	kubernetesyaml "sigs.k8s.io/yaml"
)

// The manifest of replicas has only fields that Kubernetes knows, with values of their types, and its parts fit each other, the image and the registry.
func TestKubernetes(t *testing.T) {
	var (
		secret  core.Secret
		config  core.ConfigMap
		replica apps.Deployment
		budget  policy.PodDisruptionBudget
		service core.Service
	)
	kinds := map[string]any{"v1 Secret": &secret, "v1 ConfigMap": &config, "apps/v1 Deployment": &replica, "policy/v1 PodDisruptionBudget": &budget, "v1 Service": &service}
	dec := yaml.NewDecoder(strings.NewReader(read(t, filepath.Join(root, "packaging", "ply-registry.kubernetes.yaml"))))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		b, err := yaml.Marshal(&doc)
		if err != nil {
			t.Fatal(err)
		}
		var head struct{ APIVersion, Kind string }
		if err := kubernetesyaml.Unmarshal(b, &head); err != nil {
			t.Fatal(err)
		}
		kind := head.APIVersion + " " + head.Kind
		if kinds[kind] == nil {
			t.Fatalf("an object of the kind %s, or a second one", kind)
		}
		if err := kubernetesyaml.UnmarshalStrict(b, kinds[kind]); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		delete(kinds, kind)
	}
	if len(kinds) > 0 {
		t.Fatalf("there is no %q", slices.Collect(maps.Keys(kinds)))
	}
	pod := replica.Spec.Template
	for name, selector := range map[string]map[string]string{
		"deployment": replica.Spec.Selector.MatchLabels, "service": service.Spec.Selector, "budget": budget.Spec.Selector.MatchLabels,
		"spread": pod.Spec.TopologySpreadConstraints[0].LabelSelector.MatchLabels,
	} {
		if len(selector) == 0 || !maps.Equal(selector, pod.Labels) {
			t.Errorf("the %s selects %v, and pods have %v", name, selector, pod.Labels)
		}
	}
	if *replica.Spec.Replicas < 2 {
		t.Errorf("%d replicas", *replica.Spec.Replicas)
	}
	c := pod.Spec.Containers[0]
	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}
	for _, p := range []intstr.IntOrString{service.Spec.Ports[0].TargetPort, c.StartupProbe.HTTPGet.Port, c.LivenessProbe.HTTPGet.Port, c.ReadinessProbe.HTTPGet.Port} {
		if ports[p.StrVal] == 0 {
			t.Errorf("no port of the container is called %q", p.StrVal)
		}
	}
	var volumes, mounts []string
	for _, v := range pod.Spec.Volumes {
		volumes = append(volumes, v.Name)
		if v.ConfigMap != nil && v.ConfigMap.Name != config.Name {
			t.Errorf("volume %s is of %s", v.Name, v.ConfigMap.Name)
		}
	}
	for _, m := range c.VolumeMounts {
		mounts = append(mounts, m.Name)
	}
	if !slices.Equal(volumes, mounts) {
		t.Errorf("volumes %q, mounts %q", volumes, mounts)
	}
	if c.EnvFrom[0].SecretRef.Name != secret.Name {
		t.Errorf("variables of %s", c.EnvFrom[0].SecretRef.Name)
	}
	// The registry takes the settings, and lets requests end before Kubernetes kills it.
	settings := map[string]string{}
	for _, e := range c.Env {
		settings[e.Name] = e.Value
	}
	maps.Copy(settings, secret.StringData)
	known := read(t, filepath.Join(root, "docs", "registry.md"))
	for name := range settings {
		if !strings.Contains(known, "| `"+name+"` |") {
			t.Errorf("%s is no variable of the registry", name)
		}
	}
	file := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(file, []byte(config.Data["config.yml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	// A bucket that it cannot reach and a port that is taken are no errors of the file, so the version is asked for.
	cmd := command(t, filepath.Join(bin, "ply-registry"), "--config", file, "--version")
	for name, value := range settings {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || strings.Contains(out.String(), "ignored") {
		t.Errorf("the registry does not take its settings: %v\n%s", err, out.String())
	}
	for key, port := range map[string]string{"addr: :5000": "registry", `debug: {addr: ":5001"}`: "metrics"} {
		if n := ports[port]; !strings.Contains(config.Data["config.yml"], key) || !strings.Contains(key, fmt.Sprintf(":%d", n)) {
			t.Errorf("port %s is %d, and the settings do not say %s", port, n, key)
		}
	}
	if grace := *pod.Spec.TerminationGracePeriodSeconds; grace < 45 {
		t.Errorf("%d seconds are too few for requests to end", grace)
	}
}
