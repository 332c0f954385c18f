package docker

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const busyboxSpec = `{"Image":"busybox","Cmd":["sh"],"HostConfig":{"Binds":["/a:/b"],"NetworkMode":"default"}}`

// goldenRequests are requests whose answers are kept, one per file. Every route must be met by one of them.
var goldenRequests = []struct{ name, method, target, body string }{
	{"ping", "GET", "/_ping", ""},
	{"ping_head", "HEAD", "/v1.51/_ping", ""},
	{"version", "GET", "/v1.51/version", ""},
	{"info", "GET", "/v1.51/info", ""},
	{"df", "GET", "/v1.51/system/df", ""},
	{"df_totals", "GET", "/v1.51/system/df?totals=1", ""},
	{"df_images_141", "GET", "/v1.41/system/df?type=image", ""},
	{"check", "POST", "/v1.51/system/check", ""},
	{"check_full_repair", "POST", "/v1.51/system/check?full=1&repair=1", ""},
	{"import_docker", "POST", "/v1.51/system/import-docker?dir=/d", ""},
	{"import_docker_dry", "POST", "/v1.51/system/import-docker?dir=/d&dryrun=1&prefix=old-", ""},
	{"import_docker_none", "POST", "/v1.51/system/import-docker?dir=/none", ""},
	{"df_bad", "GET", "/v1.51/system/df?type=moon", ""},
	{"events_none", "GET", "/v1.51/events?until=1", ""},
	{"auth", "POST", "/v1.51/auth", `{"username":"u","password":"right","serveraddress":"r.example"}`},
	{"auth_wrong", "POST", "/v1.51/auth", `{"username":"u","password":"s3cret","serveraddress":"r.example"}`},
	{"images_151", "GET", "/v1.51/images/json?shared-size=1", ""},
	{"images_124", "GET", "/v1.24/images/json", ""},
	{"images_filter_bad", "GET", `/v1.51/images/json?filters={"moon":["x"]}`, ""},
	{"images_dangling_bad", "GET", `/v1.51/images/json?filters={"dangling":["perhaps"]}`, ""},
	{"image_inspect_151", "GET", "/v1.51/images/busybox/json", ""},
	{"image_inspect_124", "GET", "/v1.24/images/registry.example:5000/a/b:1/json", ""},
	{"builds", "GET", "/v1.51/builds", ""},
	{"build_inspect_none", "GET", "/v1.51/builds/absent", ""},
	{"build_logs_none", "GET", "/v1.51/builds/absent/logs", ""},
	{"build_remove_none", "DELETE", "/v1.51/builds/absent", ""},
	{"image_inspect_none", "GET", "/v1.51/images/absent/json", ""},
	{"image_inspect_damaged", "GET", "/v1.51/images/damaged/json", ""},
	{"image_inspect_manifests", "GET", "/v1.51/images/busybox/json?manifests=1", ""},
	{"image_inspect_manifests_and_platform", "GET", "/v1.51/images/busybox/json?manifests=1&platform=%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22amd64%22%7D", ""},
	{"image_list_manifests", "GET", "/v1.51/images/json?manifests=1", ""},
	{"image_inspect_platform", "GET", "/v1.51/images/busybox/json?platform=%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22arm64%22%7D", ""},
	{"image_history", "GET", "/v1.51/images/busybox/history", ""},
	{"image_layers", "GET", "/v1.51/images/busybox/layers", ""},
	{"image_tree", "GET", "/v1.51/images/tree", ""},
	{"image_create", "POST", "/v1.51/images/create?fromImage=busybox&tag=latest", ""},
	{"image_create_absent", "POST", "/v1.51/images/create?fromImage=absent&tag=latest", ""},
	{"image_create_broken", "POST", "/v1.51/images/create?fromImage=broken&tag=latest", ""},
	{"image_create_nothing", "POST", "/v1.51/images/create", ""},
	{"image_create_hex", "POST", "/v1.51/images/create?fromImage=" + strings.Repeat("a", 64), ""},
	{"image_import", "POST", "/v1.51/images/create?fromSrc=-&repo=imported&tag=1&message=m", "tar"},
	{"image_push", "POST", "/v1.51/images/r.example:5000/mhk/ubuntu/push?tag=1.3", ""},
	{"image_tag", "POST", "/v1.51/images/busybox/tag?repo=r.example/x&tag=1", ""},
	{"image_tag_bad", "POST", "/v1.51/images/busybox/tag?repo=UPPER", ""},
	{"image_remove", "DELETE", "/v1.51/images/r.example/a/b:1", ""},
	{"image_remove_used", "DELETE", "/v1.51/images/used", ""},
	{"image_prune", "POST", "/v1.51/images/prune", ""},
	{"image_save", "GET", "/v1.51/images/get?names=a&names=b", ""},
	{"image_save_one", "GET", "/v1.51/images/r.example/a/b:1/get", ""},
	{"image_save_absent", "GET", "/v1.51/images/absent/get", ""},
	{"image_load", "POST", "/v1.51/images/load", "tar bytes"},
	{"image_load_quiet", "POST", "/v1.51/images/load?quiet=1", "tar bytes"},
	{"image_load_empty", "POST", "/v1.51/images/load", ""},
	{"image_search", "GET", "/v1.51/images/search?term=tree&limit=7", ""},
	{"image_search_limit", "GET", "/v1.51/images/search?term=tree&limit=101", ""},
	{"distribution", "GET", "/v1.51/distribution/busybox/json", ""},
	{"distribution_absent", "GET", "/v1.51/distribution/absent/json", ""},
	{"distribution_away", "GET", "/v1.51/distribution/away.example/x/json", ""},
	{"networks_slash", "GET", "/v1.51/networks/", ""},
	{"events_turned", "GET", "/v1.51/events?since=20&until=10", ""},
	{"info_149", "GET", "/v1.49/info", ""},
	{"commit", "POST", "/v1.51/commit?container=web&repo=mhk/ubuntu&tag=1.3&comment=add+vim&author=mhk", "{}"},
	{"containers_151", "GET", "/v1.51/containers/json?all=1&size=1", ""},
	{"containers_124", "GET", "/v1.24/containers/json", ""},
	{"containers_bad_status", "GET", `/v1.51/containers/json?filters={"status":["moon"]}`, ""},
	{"container_inspect_151", "GET", "/v1.51/containers/web/json?size=1", ""},
	{"container_inspect_124", "GET", "/v1.24/containers/web/json", ""},
	{"container_inspect_none", "GET", "/v1.51/containers/absent/json", ""},
	{"container_create", "POST", "/v1.51/containers/create?name=x", busyboxSpec},
	{"container_create_absent", "POST", "/v1.51/containers/create", `{"Image":"absent"}`},
	{"container_create_taken", "POST", "/v1.51/containers/create?name=web", busyboxSpec},
	{"container_create_gpus", "POST", "/v1.51/containers/create", `{"Image":"busybox","HostConfig":{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}}`},
	{"container_start_running", "POST", "/v1.51/containers/web/start", ""},
	{"container_start", "POST", "/v1.51/containers/old_one/start", ""},
	{"container_stop", "POST", "/v1.51/containers/web/stop?t=3&signal=INT", ""},
	{"container_restart", "POST", "/v1.51/containers/web/restart", ""},
	{"container_kill", "POST", "/v1.51/containers/old_one/kill", ""},
	{"container_rename", "POST", "/v1.51/containers/web/rename?name=/y", ""},
	{"container_rename_empty", "POST", "/v1.51/containers/web/rename", ""},
	{"container_update", "POST", "/v1.51/containers/web/update", `{"Memory":1000000,"RestartPolicy":{"Name":"always"}}`},
	{"container_pause", "POST", "/v1.51/containers/web/pause", ""},
	{"container_unpause", "POST", "/v1.51/containers/web/unpause", ""},
	{"container_remove", "DELETE", "/v1.51/containers/old_one?v=1", ""},
	{"container_remove_running", "DELETE", "/v1.51/containers/web", ""},
	{"container_prune", "POST", "/v1.51/containers/prune", ""},
	{"container_wait", "POST", "/v1.51/containers/web/wait", ""},
	{"container_logs", "GET", "/v1.51/containers/web/logs?stdout=1&stderr=1", ""},
	{"container_logs_141", "GET", "/v1.41/containers/web/logs?stderr=1&tail=5", ""},
	{"container_logs_nothing", "GET", "/v1.51/containers/web/logs", ""},
	{"container_resize", "POST", "/v1.51/containers/web/resize?h=24&w=80", ""},
	{"container_resize_bad", "POST", "/v1.51/containers/web/resize?h=-1&w=80", ""},
	{"container_top", "GET", "/v1.51/containers/web/top?ps_args=aux", ""},
	{"container_stats", "GET", "/v1.51/containers/web/stats?stream=0", ""},
	{"container_stats_once", "GET", "/v1.51/containers/web/stats?stream=0&one-shot=1", ""},
	{"container_changes", "GET", "/v1.51/containers/web/changes", ""},
	{"container_changes_none", "GET", "/v1.51/containers/old_one/changes", ""},
	{"container_export", "GET", "/v1.51/containers/web/export", ""},
	{"container_attach_refused", "POST", "/v1.51/containers/absent/attach?stream=1&stdout=1", ""},
	{"container_attach_ws", "GET", "/v1.51/containers/web/attach/ws?stream=1", ""},
	{"archive_head", "HEAD", "/v1.51/containers/web/archive?path=/etc/hosts", ""},
	{"archive_get", "GET", "/v1.51/containers/web/archive?path=/etc/hosts", ""},
	{"archive_get_absent", "GET", "/v1.51/containers/web/archive?path=/nosuch", ""},
	{"archive_get_no_path", "GET", "/v1.51/containers/web/archive", ""},
	{"archive_put", "PUT", "/v1.51/containers/web/archive?path=/etc", "tar"},
	{"exec_create", "POST", "/v1.51/containers/web/exec", `{"Cmd":["sh"],"AttachStdout":true}`},
	{"exec_create_empty", "POST", "/v1.51/containers/web/exec", `{}`},
	{"exec_start_detached", "POST", "/v1.51/exec/" + execGood + "/start", `{"Detach":true}`},
	{"exec_start_none", "POST", "/v1.51/exec/absent/start", `{}`},
	{"exec_resize", "POST", "/v1.51/exec/" + execGood + "/resize?h=1&w=2", ""},
	{"exec_inspect", "GET", "/v1.51/exec/" + execGood + "/json", ""},
	{"volumes", "GET", "/v1.51/volumes", ""},
	{"volume_create", "POST", "/v1.51/volumes/create", `{"Name":"data","Labels":{"x":"y"}}`},
	{"volume_create_driver", "POST", "/v1.51/volumes/create", `{"Name":"data","Driver":"nfs"}`},
	{"volume_inspect", "GET", "/v1.51/volumes/data", ""},
	{"volume_inspect_none", "GET", "/v1.51/volumes/absent", ""},
	{"volume_update", "PUT", "/v1.51/volumes/data?version=1", "{}"},
	{"volume_remove", "DELETE", "/v1.51/volumes/data", ""},
	{"volume_export", "GET", "/v1.51/volumes/data/export", ""},
	{"volume_export_none", "GET", "/v1.51/volumes/absent/export", ""},
	{"volume_import", "POST", "/v1.51/volumes/data/import", "tar bytes"},
	{"volume_import_bad", "POST", "/v1.51/volumes/data/import", "bytes"},
	{"volume_copy", "POST", "/v1.51/volumes/data/copy?name=backup", ""},
	{"volume_rename", "POST", "/v1.51/volumes/data/rename?name=y", ""},
	{"volume_rename_taken", "POST", "/v1.51/volumes/data/rename?name=taken", ""},
	{"volume_rename_empty", "POST", "/v1.51/volumes/data/rename", ""},
	{"volume_prune", "POST", "/v1.51/volumes/prune", ""},
	{"networks", "GET", "/v1.51/networks", ""},
	{"network_inspect", "GET", "/v1.24/networks/bridge", ""},
	{"network_create", "POST", "/v1.51/networks/create", `{"Name":"x"}`},
	{"network_connect", "POST", "/v1.51/networks/bridge/connect", `{"Container":"web"}`},
	{"network_disconnect", "POST", "/v1.51/networks/bridge/disconnect", `{"Container":"web"}`},
	{"network_remove", "DELETE", "/v1.51/networks/bridge", ""},
	{"network_prune", "POST", "/v1.51/networks/prune", ""},
	{"swarm", "GET", "/v1.51/swarm", ""},
	{"checkpoint_create", "POST", "/v1.51/containers/web/checkpoints", `{"CheckpointID":"x"}`},
	{"checkpoint_create_again", "POST", "/v1.51/containers/web/checkpoints", `{"CheckpointID":"saved","Exit":true}`},
	{"checkpoint_create_absent", "POST", "/v1.51/containers/absent/checkpoints", `{"CheckpointID":"x"}`},
	{"checkpoint_remove", "DELETE", "/v1.51/containers/web/checkpoints/x", ""},
	{"checkpoint_remove_one", "DELETE", "/v1.51/containers/web/checkpoints/saved", ""},
	{"checkpoint_start", "POST", "/v1.51/containers/web/start?checkpoint=saved", ""},
	{"checkpoints", "GET", "/v1.51/containers/web/checkpoints", ""},
	{"checkpoints_none", "GET", "/v1.51/containers/web/checkpoints?dir=/elsewhere", ""},
	{"swarm_init", "POST", "/v1.51/swarm/init", "{}"},
	{"swarm_leave", "POST", "/v1.51/swarm/leave", ""},
	{"services", "GET", "/v1.51/services", ""},
	{"plugins", "GET", "/v1.51/plugins", ""},
	{"plugin_none", "GET", "/v1.51/plugins/vieux/sshfs:latest/json", ""},
	{"build", "POST", "/v1.51/build?t=x", "tar"},
	{"build_prune", "POST", "/v1.51/build/prune", ""},
	{"page_not_found", "GET", "/v1.51/nowhere", ""},
	{"too_new", "GET", "/v1.99/version", ""},
	{"too_old", "GET", "/v1.23/version", ""},
	{"panic", "GET", "/v1.51/images/panic/json", ""},
}

func TestGolden(t *testing.T) {
	for _, tc := range goldenRequests {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			rec := w.do(tc.method, strings.ReplaceAll(tc.target, `"`, "%22"), strings.NewReader(tc.body))
			got := dump(tc.method+" "+tc.target, rec.Code, rec.Header(), rec.Body.String())
			path := filepath.Join("testdata", tc.name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("answer differs (-want +got):\n%s", diff)
			}
			if strings.Contains(got, "s3cret") || strings.Contains(got, "p4ss") {
				t.Error("the answer shows a password")
			}
		})
	}
}

// always holds the headers that every answer has.
var always = map[string]bool{"Api-Version": true, "Docker-Experimental": true, "Ostype": true, "Server": true}

func dump(request string, status int, header map[string][]string, body string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%d\n", request, status)
	var keys []string
	for k := range header {
		if !always[k] {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(header[k], ", "))
	}
	b.WriteString("\n")
	if regexp.MustCompile(`[\x00-\x08]`).MatchString(body) {
		body = fmt.Sprintf("%q\n", body)
	}
	b.WriteString(strings.ReplaceAll(body, "\r\n", "\\r\n"))
	return b.String()
}

func TestEveryRouteHasAGolden(t *testing.T) {
	w := newWorld(t)
	met := map[string]bool{}
	for _, tc := range goldenRequests {
		path, _, _ := strings.Cut(tc.target, "?")
		_, rest, err := splitVersion(path, minVersion)
		if err != nil {
			continue
		}
		if rt, _ := match(w.api.routes, tc.method, rest); rt != nil {
			met[rt.method+" "+rt.pattern] = true
		}
	}
	same := regexp.MustCompile(`^[A-Z]+ /(nodes|services|tasks|secrets|configs|swarm|plugins|session|grpc|build)\b`) // many paths, one answer
	elsewhere := map[string]bool{"POST /containers/{id}/attach": true}                                               // TestAttach…
	for _, rt := range w.api.routes {
		if name := rt.method + " " + rt.pattern; !met[name] && !same.MatchString(name) && !elsewhere[name] {
			t.Errorf("%s: no golden file", name)
		}
	}
}
