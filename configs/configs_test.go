package configs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"launcher/internal/errs"
	"launcher/wire"
)

const okPool = "\n[[pool]]\nname = \"p\"\nbackend = \"local\"\n"

func faultsOf(t *testing.T, err error) Faults {
	t.Helper()
	f, ok := errors.AsType[Faults](err)
	if err != nil && !ok {
		t.Fatalf("error is no list of faults: %v", err)
	}
	return f
}

// compare checks the faults of a text against lines "LINE: KEY: part of the message".
func compare(t *testing.T, err error, want []string) {
	t.Helper()
	got := faultsOf(t, err)
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(want):
			t.Errorf("fault not expected: %s", got[i])
		case i >= len(got):
			t.Errorf("fault missing: %s", want[i])
		default:
			parts := strings.SplitN(want[i], ": ", 3)
			if g := got[i]; fmt.Sprint(g.Line) != parts[0] || g.Key != parts[1] || !strings.Contains(g.Msg, parts[2]) {
				t.Errorf("fault %d:\n got %d: %s: %s\nwant %s", i, g.Line, g.Key, g.Msg, want[i])
			}
		}
	}
}

func TestClusterFaults(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"minimal", "version = 1" + okPool, nil},
		{"empty", "", []string{"1: version: missing; write version = 1", "1: pool: missing"}},
		{"version", "version = 2" + okPool, []string{"1: version: 2 is unknown"}},
		{"version type", "version = \"1\"" + okPool, []string{`1: version: "1" is a string; give the integer 1`}},
		{"syntax", "version = 1\nname = \n", []string{"2: : not TOML"}},
		{"twice", "version = 1\nversion = 1\n", []string{"2: : not TOML"}},
		{"unknown keys", "version = 1\nnmae = \"x\"\n[haed]\n[head]\nwhree = 1" + okPool + "mim = 1\n", []string{
			"2: nmae: unknown key; did you mean name?", "3: haed: unknown key; did you mean head?",
			"5: head.whree: unknown key; did you mean where?", "9: pool.mim: unknown key; did you mean min?"}},
		{"wrong types", "version = 1\nname = 3\nobjects = 4\n[network]\nports = 20000" + okPool + "nodes = \"2\"\nenv = { A = 1 }\nsetup = \"x\"\nhold = 1\nidle = 30\n", []string{
			"2: name: 3 is an integer; give a string", "3: objects: 4 is an integer; give a table",
			"5: network.ports: 20000 is an integer; give a string", `9: pool.nodes: "2" is a string; give an integer from 1 to 1024`,
			"10: pool.env.A: 1 is an integer; put it in quotes", `11: pool.setup: "x" is a string; give a list`,
			"12: pool.hold: 1 is an integer; give true or false", `13: pool.idle: 30 is an integer; give a duration in quotes`}},
		{"bounds", "version = 1\nname = \"-x\"\n[head]\nreplicas = 2\ngrace = \"0s\"\n[objects]\nmemory = \"130%\"\nspill = \"rel\"\n[network]\nports = \"9-5\"\ninterface = \"a b\"" + okPool + "nodes = 0\nshare = \"all\"\n", []string{
			`2: name: "-x" cannot be a name`, "4: head.replicas: 2 survives no loss; give 1 or 3", "5: head.grace: \"0s\" is out of bounds; give a duration from 1s to 168h",
			`7: objects.memory: "130%" is out of bounds`, `8: objects.spill: "rel" is not a directory`, `10: network.ports: "9-5" is not a range of ports`,
			`11: network.interface: "a b" cannot be`, "15: pool.nodes: 0 is out of bounds", `16: pool.share: "all" is unknown; allowed are ignore, yield`}},
		{"contradictions", "version = 1\n[head]\nwhere = \"pool:q\"" + okPool + "min = 3\nmax = 2\nnodes = 2\n" + okPool + "max = 4\n", []string{
			`3: head.where: there is no pool "q"; did you mean p?`,
			"7: pool.min: 3 is more than max, 2", `12: pool.name: "p" is the name of the pool in line 4 too`, "14: pool.max: 4 is more than the 1 nodes"}},
		{"no pool name", "version = 1\n[[pool]]\nbackend = \"lokal\"\nnodes = 3\n", []string{
			"2: pool.name: missing", `3: pool.backend: "lokal" is unknown; did you mean local?`}},
		{"no backend", "version = 1\n[[pool]]\nnmae = \"a\"\nbackedn = \"local\"\nnodse = 3\nhosts = 1\n", []string{
			"2: pool.name: missing", "2: pool.backend: missing", "3: pool.nmae: unknown key; did you mean name?", "4: pool.backedn: unknown key; did you mean backend?", "5: pool.nodse: unknown key; did you mean nodes?"}},
		{"one of", "version = 1\n[security]\nencrypt = true" + okPool, []string{"3: security.encrypt: true is a boolean; give one of all, control"}},
		{"foreign keys", "version = 1" + okPool + "hosts = [\"a\"]\n", []string{"5: pool.hosts: unknown key"}},
		{"ssh", "version = 1\n[[pool]]\nname = \"p\"\nbackend = \"ssh\"\nhosts = [\n  \"a[01-03]\",\n  \"a02\",\n  \"b c\",\n  7,\n]\ntransport = \"x\"\nport = 0\n", []string{
			`7: pool.hosts: "a02" is in the list twice`, `8: pool.hosts: "b c" is not a host`, "9: pool.hosts: element 4, 7, is an integer",
			`11: pool.transport: "x" is unknown; allowed are go, system`, "12: pool.port: 0 is out of bounds"}},
		{"ssh twice", "version = 1\n[[pool]]\nname = \"p\"\nbackend = \"ssh\"\nhosts = [\n  \"h\",\n  \"al@H:2222\",\n  \"h:22\",\n  \"[::1]\",\n  \"[::1]:2222\",\n]\nport = 2222\n", []string{
			`7: pool.hosts: "al@H:2222" is the machine "h", which is in the list already`, `10: pool.hosts: "[::1]:2222" is the machine "[::1]"`}},
		{"slurm", "version = 1\n[[pool]]\nname = \"p\"\nbackend = \"slurm\"\ntime = [\"8h\", \"1h\"]\nmemory = 4\ngres = \"gpu a\"\nargs = [\"x\"]\naccount = \"a b\"\n", []string{
			"5: pool.time: the first, 8h, is more than the second, 1h", "6: pool.memory: 4 is an integer; give a size in quotes",
			`7: pool.gres: "gpu a" is not a gres`, `8: pool.args: "x" is not one option`, `9: pool.account: "a b" is not one word`}},
		{"yarn", "version = 1\n[[pool]]\nname = \"p\"\nbackend = \"yarn\"\nhadoop_conf = \"/x\"\nresourcemanager = \"rm:1\"\nkeytab = \"k\"\n", []string{
			`4: pool.backend: "yarn": not in this version`, "6: pool.resourcemanager: hadoop_conf names it already", "7: pool.keytab: principal and keytab belong together"}},
		{"resources", "version = 1" + okPool + "[pool.resources]\ncpus = 2\ngpu = -1\nmemory = \"lots\"\nlicense = 2\nfoo = \"x\"\n", []string{
			"6: pool.resources.cpus: unknown key; did you mean cpu?", "7: pool.resources.gpu: -1 is out of bounds", `8: pool.resources.memory: "lots" is not a size`, "10: pool.resources.foo: unknown key"}},
		{"no resources", "version = 1" + okPool + "[pool.resources]\ncpu = 0\ngpu = 0\nmemory = \"0B\"\n", []string{
			"6: pool.resources.cpu: 0 is out of bounds; a node needs some", "8: pool.resources.memory: 0 is out of bounds; a node needs some"}},
		{"env", "version = 1" + okPool + "env = { \"A-B\" = \"1\", LAUNCHER_X = \"1\" }\nlabels = { a = 1 }\n", []string{
			"5: pool.env.A-B: \"A-B\" is not a name", "5: pool.env.LAUNCHER_X: names that begin with LAUNCHER_", "6: pool.labels.a: 1 is an integer; put it in quotes"}},
		{"float", "version = 1" + okPool + "nodes = 2.0\nuntil = 06:00:00\nlabels = []\n", []string{
			"5: pool.nodes: 2.0 is a number; give an integer", "6: pool.until: 06:00:00 is a date or time without quotes; give a string", "7: pool.labels: is a list; give a table"}},
		{"a job file", "version = 1\ncommand = [\"x\"]\n", []string{"1: : it is a job file, not a cluster spec; hand it to launcher submit"}},
		{"windows", "\ufeffversion = 1\r\n[[pool]]\r\nname = \"p\"\r\nbackend = \"local\"\r\nnodes = 0\r\n", []string{"5: pool.nodes: 0 is out of bounds"}},
		{"pool is a table", "version = 1\n[pool]\nname = \"x\"\n", []string{"2: pool: is a table; give tables, each begun by [[pool]]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseCluster("lab.toml", "/d/lab.toml", []byte(c.text))
			compare(t, err, c.want)
			if len(c.want) > 0 && !strings.Contains(err.Error(), "lab.toml:"+strings.SplitN(c.want[0], ":", 2)[0]+": ") {
				t.Errorf("%q does not begin with file and line", err)
			}
		})
	}
}

func TestClusterValues(t *testing.T) {
	text := "version = 1\n[head]\ngrace = \"1m\"\n[objects]\nmemory = \"20GiB\"\n" + okPool + `nodes = 4
min = 1
idle = "90s"
setup = ["a", "b"]
env = { Z = "1", A = "x=y" }
python = "../.venv/bin/python"
labels = { fabric = "ib" }
[pool.resources]
cpu = 2.5
memory = "1GiB"
license = 2
` + "\n[[pool]]\nname = \"q\"\nbackend = \"local\"\npython = \"python3.11\"\n"
	c, err := ParseCluster("x.toml", "/work place/digits/cluster.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "digits-cluster" || c.Grace != time.Minute || c.ObjectMemory != "20GiB" || c.Where != "auto" || c.Replicas != 1 || c.Encrypt != "all" {
		t.Errorf("%+v", c)
	}
	res := &wire.Resources{CPU: 25000, Memory: 1 << 30, Custom: map[string]int64{"license": 20000}}
	want := []Pool{
		{Name: "p", Backend: "local", Min: 1, Max: 4, Idle: 90 * time.Second, Setup: []string{"a", "b"}, Env: []string{"Z=1", "A=x=y"},
			Python: "/work place/.venv/bin/python", Resources: res, Labels: map[string]string{"fabric": "ib"}, Options: map[string]any{"nodes": int64(4)}, Line: 7},
		{Name: "q", Backend: "local", Min: 1, Max: 1, Python: "python3.11", Options: map[string]any{}, Line: 22},
	}
	if !reflect.DeepEqual(c.Pools, want) {
		t.Errorf("pools\n got %+v\nwant %+v", c.Pools, want)
	}
	h := c.HeadConfig("/state", "/home", "/bin/launcher")
	if h.Name != c.Name || h.SpecText != text || h.Pools[0].Idle != int64(90*time.Second) || h.Grace != int64(time.Minute) {
		t.Errorf("%+v", h)
	}
	var options map[string]any
	if err := wire.Unmarshal(h.Pools[0].Options, &options); err != nil || fmt.Sprint(options["nodes"]) != "4" {
		t.Errorf("options %v, %v", options, err)
	}
}

// TestHeadPool: by itself the head is on a host where all nodes are.
func TestHeadPool(t *testing.T) {
	ssh := func(name, more string) string {
		return fmt.Sprintf("\n[[pool]]\nname = %q\nbackend = \"ssh\"\nhosts = [\"%s1\"]\n%s\n", name, name, more)
	}
	head := func(where string) string { return fmt.Sprintf("\n[head]\nwhere = %q\n", where) }
	for spec, want := range map[string]string{
		ssh("a", "") + ssh("b", ""):                   "a",
		head("auto") + ssh("a", ""):                   "a",
		head("here") + ssh("a", ""):                   "",
		head("pool:b") + ssh("a", "") + ssh("b", ""):  "b",
		ssh("a", "min = 0") + ssh("b", ""):            "a",
		ssh("a", "min = 0"):                           "",
		ssh("a", "") + okPool:                         "",
		head("pool:a") + ssh("a", "min = 0") + okPool: "a",
	} {
		c, err := ParseCluster("lab.toml", "/d/lab.toml", []byte("version = 1\n"+spec))
		if err != nil {
			t.Errorf("%s: %v", spec, err)
		} else if got := c.HeadConfig("/state", "/home", "/bin/launcher").At; got != want {
			t.Errorf("%s: the head is in pool %q, want %q", spec, got, want)
		}
	}
}

// TestContainer: files beside the spec are found from it, names of images stay.
func TestContainer(t *testing.T) {
	for in, want := range map[string]string{"apptainer://x.sif": "apptainer:///d/x.sif", "apptainer://../i/x.sif": "apptainer:///i/x.sif", "apptainer:///i/x.sif": "apptainer:///i/x.sif",
		"apptainer://docker://python:3.12": "apptainer://docker://python:3.12", "enroot://x.sqsh": "enroot:///d/x.sqsh", "enroot://pytorch": "enroot://pytorch",
		"podman://docker.io/library/python:3.12": "podman://docker.io/library/python:3.12", "podman://./image": "podman:///d/image", "": ""} {
		c, err := ParseCluster("lab.toml", "/d/lab.toml", []byte("version = 1"+okPool+"container = \""+in+"\"\n"))
		if err != nil || c.Pools[0].Container != want {
			t.Errorf("%q: %+v, %v; want %q", in, c, err, want)
		}
	}
	for _, in := range []string{"docker://x", "x.sif", "podman://", "podman://--privileged", "podman://a b"} {
		if _, err := ParseCluster("lab.toml", "/d/lab.toml", []byte("version = 1"+okPool+"container = \""+in+"\"\n")); err == nil || !strings.Contains(err.Error(), "5: pool.container: ") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestDefaultName(t *testing.T) {
	for path, want := range map[string]string{
		"/a/digits/cluster.toml": "digits-cluster", "/cluster.toml": "cluster", "/ä b/c.d.toml": "b-c.d", "/_/-.toml": "cluster",
		"/" + strings.Repeat("x", 100) + "/y.toml": strings.Repeat("x", 63),
	} {
		if got := DefaultName(path); got != want || CheckName(got) != nil {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}

// setKey sets a dotted key in nested maps.
func setKey(m map[string]any, key string, v any) {
	first, rest, more := strings.Cut(key, ".")
	if !more {
		m[first] = v
		return
	}
	switch sub := m[first].(type) {
	case []map[string]any:
		setKey(sub[0], rest, v)
	case map[string]any:
		setKey(sub, rest, v)
	default:
		fresh := map[string]any{}
		m[first] = fresh
		setKey(fresh, rest, v)
	}
}

// parseLine makes the file that a line of unbuilt.txt stands for, and reads it.
func parseLine(t *testing.T, line string) (key string, err error) {
	t.Helper()
	kind, sets, _ := strings.Cut(line, " ")
	m := map[string]any{"version": 1}
	if kind == "cluster" {
		m["pool"] = []map[string]any{{"name": "p", "backend": "local"}}
	} else {
		m["command"] = []string{"true"}
	}
	for _, set := range strings.Split(sets, "; ") {
		k, text, ok := strings.Cut(set, " = ")
		var v struct{ V any }
		if _, err := toml.Decode("V = "+text, &v); err != nil || !ok {
			t.Fatalf("%q: %v", line, err)
		}
		setKey(m, k, v.V)
		if key == "" {
			key = k
		}
	}
	text, err := toml.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if kind == "cluster" {
		_, err = ParseCluster("f", "/d/f", text)
	} else {
		_, err = ParseJob("f", filepath.Join(t.TempDir(), "f"), text)
	}
	return key, err
}

func TestUnbuilt(t *testing.T) {
	text, err := os.ReadFile("testdata/unbuilt.txt")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		key, err := parseLine(t, line)
		listed[key] = true
		if !errs.Is(err, errs.Unbuilt) {
			t.Errorf("%s: not refused as unbuilt: %v", line, err)
			continue
		}
		found := false
		for _, f := range faultsOf(t, err) {
			found = found || f.Key == key && strings.HasSuffix(f.Msg, ": not in this version")
		}
		if !found {
			t.Errorf("%s: refused, but not for %s: %v", line, key, err)
		}
	}
	for key := range notBuiltYet {
		if !listed[key] {
			t.Errorf("%s is refused by unbuilt.go and has no line in unbuilt.txt", key)
		}
	}
}

// TestBuilt loads what the list must not hold.
func TestBuilt(t *testing.T) {
	for _, line := range []string{
		`cluster head.where = "here"`, `cluster head.where = "auto"`, `cluster head.replicas = 1`, `cluster security.encrypt = "all"`,
		`cluster pool.container = ""`, `cluster pool.share = "ignore"`, `cluster pool.min = 0; pool.nodes = 2; pool.idle = "1m"`,
		`job kind = "run"`, `job array.range = "0-9"`, `job train.workers = 4`, `job train.workers = "4:4"`, `job train.workers = 2; train.checkpoints = "x"; train.score = "-loss"`,
		`job sweep.method = "grid"; sweep.parameters.a.value = 1`, `job sweep.method = "random"; sweep.run_cap = 3; sweep.parameters.a.value = 1`,
		`job sweep.early_terminate.type = "asha"; sweep.early_terminate.max_iter = 9; sweep.metric.name = "l"; sweep.method = "grid"; sweep.parameters.a.value = 1`,
	} {
		if _, err := parseLine(t, line); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestSamples(t *testing.T) {
	unbuilt := map[string]bool{"yarn.toml": true, "jobs/map.toml": true, "jobs/elastic.toml": true}
	var n int
	load := func(path string, f func(string) error) {
		n++
		switch err := f(path); {
		case unbuilt[path] && !errs.Is(err, errs.Unbuilt):
			t.Errorf("%s: want unbuilt, got %v", path, err)
		case !unbuilt[path] && err != nil:
			t.Errorf("%s: %v", path, err)
		}
	}
	clusters, _ := filepath.Glob("*.toml")
	for _, p := range clusters {
		load(p, func(p string) error { _, err := LoadCluster(p); return err })
	}
	jobs, _ := filepath.Glob("jobs/*")
	for _, p := range jobs {
		load(p, func(p string) error {
			j, err := LoadJob(p)
			if err == nil {
				_, err = j.Spec()
			}
			return err
		})
	}
	if n < 10 {
		t.Errorf("only %d samples", n)
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	for path, kind := range map[string]errs.Kind{filepath.Join(dir, "no.toml"): errs.NotFound, dir: errs.Invalid} {
		if _, err := LoadCluster(path); !errs.Is(err, kind) || !strings.Contains(fmt.Sprint(err), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	big := filepath.Join(dir, "big.toml")
	if err := os.WriteFile(big, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadJob(big); err == nil || !strings.Contains(err.Error(), "larger than 4 MiB") {
		t.Error(err)
	}
}
