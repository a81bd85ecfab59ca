package configs

import (
	"regexp"
	"strings"
	"time"

	"launcher/internal/hostlist"
	"launcher/wire"
)

// backendKeys reads the keys that belong to one backend and gives the most nodes there
// can be (0 = unknown), the default of min, and of max.
type backendKeys func(t *table, dir string) (limit, defMin, defMax int)

// backendsKnown is the schema of every backend of the design, built or not.
var backendsKnown = map[string]backendKeys{
	"local": localKeys,
	"ssh":   sshKeys,
	"slurm": slurmKeys,
	"yarn":  yarnKeys,
}

// commonKeys are taken out of a pool's table; the rest are its backend's options.
var commonKeys = []string{"name", "backend", "min", "max", "idle", "hold", "total", "until", "max_jobs",
	"setup", "env", "python", "container", "resources", "labels", "share"}

// maxPools bounds the pools of a cluster.
const maxPools = 256

func readPools(t *table, dir string) []Pool {
	tables := t.tables("pool")
	if len(tables) > maxPools {
		t.faultAt(tables[maxPools].line, "pool", "%d pools; give at most %d", len(tables), maxPools)
		tables = tables[:maxPools]
	}
	if len(tables) == 0 && !t.bad["pool"] {
		t.fault("pool", `missing; a cluster needs at least one [[pool]], such as one with backend = "local"`)
	}
	seen := map[string]int{}
	var out []Pool
	for _, pt := range tables {
		p := readPool(pt, dir)
		if first, dup := seen[p.Name]; dup && p.Name != "" {
			pt.fault("name", "%q is the name of the pool in line %d too; each pool needs its own", p.Name, first)
		} else {
			seen[p.Name] = pt.line
		}
		out = append(out, p)
	}
	return out
}

func readPool(t *table, dir string) Pool {
	p := Pool{Line: t.line, Options: map[string]any{}}
	p.Name = t.str("name", "")
	if !t.has("name") {
		t.fault("name", `missing; give each pool a name, such as "local"`)
	} else if !t.bad["name"] && !poolRE.MatchString(p.Name) {
		t.fault("name", "%q cannot be the name of a pool; give 1 to 32 letters, digits, '_' or '-', first and last a letter or digit", p.Name)
	}
	known := []string{"local", "ssh", "slurm", "yarn"}
	p.Backend = t.oneOf("backend", "", known...)
	if !t.has("backend") {
		t.fault("backend", "missing; give one of %s", strings.Join(known, ", "))
	}
	keys := backendsKnown[p.Backend]

	limit, defMin, defMax := 0, 0, 0
	if keys != nil {
		limit, defMin, defMax = keys(t, dir)
	}
	if p.Backend == "ssh" {
		p.Hosts = hostsOf(t)
	}
	p.Min = int(t.integer("min", int64(defMin), 0, 100_000))
	if !t.has("min") && t.has("max") {
		if m := t.obj.m["max"]; m != nil {
			if v, ok := m.val.(int64); ok && v > 0 && int(v) < p.Min {
				p.Min = int(v)
			}
		}
	}
	// Where the backend cannot tell how many there can be, no more are asked for than is said.
	if defMax == 0 {
		defMax = max(p.Min, 1)
	}
	p.Max = int(t.integer("max", int64(defMax), 1, 100_000))
	if !t.bad["min"] && !t.bad["max"] {
		switch {
		case p.Max > 0 && p.Min > p.Max:
			t.fault("min", "%d is more than max, %d; give at most max", p.Min, p.Max)
		case limit > 0 && t.has("max") && p.Max > limit:
			t.fault("max", "%d is more than the %d nodes this pool has; give at most that", p.Max, limit)
		}
	}
	p.Idle = t.duration("idle", 0, time.Second, 365*24*time.Hour)
	p.Hold = t.boolean("hold", false)
	p.Total = t.duration("total", 0, time.Minute, 10*365*24*time.Hour)
	p.Until = t.str("until", "")
	if p.Until != "" && !untilRE.MatchString(p.Until) {
		t.fault("until", `%q is not a time; give "06:00" or "2026-12-31 06:00"`, p.Until)
	}
	p.MaxJobs = int(t.integer("max_jobs", 0, 1, 100_000))
	p.Setup = t.strings("setup", 0)
	p.Env = t.environment("env")
	if p.Python = t.str("python", ""); strings.Contains(p.Python, "/") {
		p.Python = resolve(dir, p.Python)
	} else if t.has("python") && !t.bad["python"] && p.Python == "" {
		t.fault("python", `"" is no interpreter; give a path or a name such as "python3.11", or leave the key out`)
	}
	p.Container = t.str("container", "")
	if scheme, _, ok := strings.Cut(p.Container, "://"); p.Container != "" && (!ok || !containers[scheme]) {
		t.fault("container", `%q is not a container; give apptainer://IMAGE, enroot://IMAGE or podman://IMAGE`, p.Container)
	} else if image := p.Container[min(len(p.Container), len(scheme)+3):]; strings.HasPrefix(image, "./") || strings.HasPrefix(image, "../") ||
		!strings.Contains(image, ":") && (strings.HasSuffix(image, ".sif") || strings.HasSuffix(image, ".sqsh")) {
		p.Container = scheme + "://" + resolve(dir, image)
	} else if p.Container != "" && (image == "" || strings.HasPrefix(image, "-") || strings.ContainsAny(image, " \t\n")) {
		t.fault("container", "%q names no image", p.Container)
	}
	if rt := t.table("resources"); rt.present {
		r := rt.resources(wire.Resources{})
		// 0 stands for what detection finds from here on: it must not be taken for none.
		if rt.has("cpu") && !rt.bad["cpu"] && r.CPU == 0 {
			rt.fault("cpu", "0 is out of bounds; a node needs some, or leave the key out for what it has")
		}
		if rt.has("memory") && !rt.bad["memory"] && r.Memory == 0 {
			rt.fault("memory", "0 is out of bounds; a node needs some, or leave the key out for what it has")
		}
		if rt.has("gpu") && !rt.bad["gpu"] && r.GPU == 0 {
			r.GPU = wire.NoGPUs
		}
		p.Resources = &r
		rt.done()
	}
	names, values := t.pairs("labels", `a table of strings, such as { fabric = "ib" }`, resourceRE.MatchString)
	for i, k := range names {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[k] = values[i]
	}
	shares := "" // GPUs that others use are left to them; on boxes that people share, cores, too
	if p.Backend == "ssh" {
		shares = "yield"
	}
	p.Share = t.oneOf("share", shares, "yield", "ignore")
	if keys == nil { // whose keys the others are, nobody knows: those of any backend pass
		guess := &table{f: &file{}, obj: t.obj, bad: map[string]bool{}}
		for _, b := range known {
			backendsKnown[b](guess, dir)
		}
		t.known = append(t.known, guess.known...)
	}
	t.done()

	common := map[string]bool{}
	for _, k := range commonKeys {
		common[k] = true
	}
	for _, k := range t.obj.keys {
		if !common[k] {
			p.Options[k] = t.obj.m[k].plain()
		}
	}
	for _, k := range []string{"identity", "known_hosts", "ssh_config"} {
		if s, ok := p.Options[k].(string); ok && s != "" && p.Backend == "ssh" {
			p.Options[k] = resolve(dir, s)
		}
	}
	return p
}

var (
	untilRE    = regexp.MustCompile(`^([0-9]{4}-[0-9]{2}-[0-9]{2}[ T])?([01][0-9]|2[0-3]):[0-5][0-9]$`)
	containers = map[string]bool{"apptainer": true, "enroot": true, "podman": true}
)

// environment reads { NAME = "value" } into KEY=VALUE, in the order of the file.
func (t *table) environment(key string) []string {
	names, values := t.pairs(key, `a table of strings, such as { NCCL_DEBUG = "WARN" }`, envRE.MatchString)
	var out []string
	for i, k := range names {
		if strings.HasPrefix(k, "LAUNCHER_") {
			t.faultAt(t.obj.m[key].line, key+"."+k, "names that begin with LAUNCHER_ are launcher's own; choose another")
			continue
		}
		out = append(out, k+"="+values[i])
	}
	return out
}

func localKeys(t *table, _ string) (limit, defMin, defMax int) {
	n := int(t.integer("nodes", 1, 1, 1024))
	return n, n, n
}

var userRE = regexp.MustCompile(`^[A-Za-z0-9._][A-Za-z0-9._-]*$`)

// hostsOf lists the machines that `hosts` names; what is wrong with it, sshKeys says.
func hostsOf(t *table) (out []string) {
	n := t.obj.m["hosts"]
	if n == nil {
		return nil
	}
	list, _ := n.val.([]*node)
	for _, e := range list {
		if s, ok := e.val.(string); ok {
			names, _ := hostlist.Expand(s)
			out = append(out, names...)
		}
	}
	return out
}

func sshKeys(t *table, _ string) (limit, defMin, defMax int) {
	if !t.has("hosts") {
		t.fault("hosts", `missing; list the machines, such as ["gpu[01-04]"]`)
	}
	hosts := map[string]string{} // as they are written, by machine
	port := int(t.integer("port", 22, 1, 65535))
	for i, h := range t.strings("hosts", 1) {
		line := t.obj.m["hosts"].val.([]*node)[min(i, len(t.obj.m["hosts"].val.([]*node))-1)].line
		names, err := hostlist.Expand(h)
		if err != nil {
			t.faultAt(line, "hosts", "%s", err)
		}
		for _, n := range names {
			m := hostlist.Machine(n, port)
			switch first, ok := hosts[m]; {
			case first == n:
				t.faultAt(line, "hosts", "%q is in the list twice", n)
			case ok:
				t.faultAt(line, "hosts", "%q is the machine %q, which is in the list already", n, first)
			}
			hosts[m] = n
		}
	}
	if u := t.str("user", ""); u != "" && !userRE.MatchString(u) {
		t.fault("user", "%q cannot be a user name", u)
	}
	t.str("identity", "")
	for _, hop := range strings.Split(t.str("jump", ""), ",") {
		if hop != "" && !hostlist.Is(strings.TrimSpace(hop)) {
			t.fault("jump", "%q is not a host; give [user@]host[:port], several with commas between", hop)
		}
	}
	t.str("known_hosts", "")
	t.str("ssh_config", "")
	t.oneOf("transport", "go", "go", "system")
	t.str("directory", "")
	return len(hosts), min(1, len(hosts)), len(hosts)
}

var gresRE = regexp.MustCompile(`^[A-Za-z0-9_]+(:[A-Za-z0-9_.-]+)?(:[0-9]+)?(,[A-Za-z0-9_]+(:[A-Za-z0-9_.-]+)?(:[0-9]+)?)*$`)

func slurmKeys(t *table, _ string) (limit, defMin, defMax int) {
	if n := t.get("time"); n != nil {
		if list, ok := n.val.([]*node); ok {
			slurmTimes(t, list)
		} else {
			t.duration("time", 0, time.Minute, 365*24*time.Hour)
		}
	}
	t.integer("nodes_per_job", 0, 1, 100_000)
	t.integer("cpus", 0, 1, 100_000)
	t.size("memory", 0)
	if g := t.str("gres", ""); g != "" && !gresRE.MatchString(g) {
		t.fault("gres", `%q is not a gres; give NAME[:TYPE][:COUNT], such as "gpu:a100:8"`, g)
	}
	t.integer("gpus_per_node", 0, 0, 1024)
	if t.has("gres") && t.has("gpus_per_node") && strings.Contains(t.str("gres", ""), "gpu") {
		t.fault("gpus_per_node", "gres asks for GPUs already; give one of the two")
	}
	t.boolean("exclusive", false)
	t.boolean("overlap", false)
	t.boolean("shared_home", true)
	for _, k := range []string{"partition", "account", "qos", "constraint", "reservation"} {
		if s := t.str(k, ""); strings.ContainsFunc(s, notInWord) {
			t.fault(k, "%q is not one word", s)
		}
	}
	for _, a := range t.strings("args", 0) {
		if !strings.HasPrefix(a, "-") || strings.ContainsAny(a, "\n\r") {
			t.fault("args", `%q is not one option; give each as sbatch takes it, such as "--mail-type=END"`, a)
		}
	}
	return 0, 0, 0
}

// notInWord are characters that would end a word of a batch script's options.
func notInWord(c rune) bool { return c <= ' ' || strings.ContainsRune("\"'\\#", c) }

func slurmTimes(t *table, list []*node) {
	if len(list) != 2 {
		t.fault("time", `%d values; give one time or the least and the most, such as ["1h", "8h"]`, len(list))
		return
	}
	var d [2]time.Duration
	for i, n := range list {
		s, ok := n.val.(string)
		if !ok {
			t.want("time", n, `durations in quotes, such as ["1h", "8h"]`)
			return
		}
		v, err := ParseDuration(s)
		if err != nil {
			t.fault("time", "%s", err)
			return
		}
		if d[i] = v; v < time.Minute {
			t.fault("time", "%q is out of bounds; give at least 1m", s)
			return
		}
	}
	if d[0] > d[1] {
		t.fault("time", "the first, %s, is more than the second, %s; give the least first", showDuration(d[0]), showDuration(d[1]))
	}
}

func yarnKeys(t *table, _ string) (limit, defMin, defMax int) {
	rm, conf := t.str("resourcemanager", ""), t.str("hadoop_conf", "")
	if rm != "" && conf != "" {
		t.fault("resourcemanager", "hadoop_conf names it already; give one of the two")
	}
	if rm != "" && !hostlist.Is(rm) {
		t.fault("resourcemanager", `%q is not an address; give host:port, such as "rm1:8032"`, rm)
	}
	t.str("queue", "")
	t.size("memory", 0)
	t.integer("vcores", 0, 1, 100_000)
	t.integer("gpus", 0, 0, 1024)
	t.str("node_label", "")
	t.str("user", "")
	if (t.str("principal", "") == "") != (t.str("keytab", "") == "") {
		key := "principal"
		if t.has("keytab") {
			key = "keytab"
		}
		t.fault(key, "principal and keytab belong together; give both or neither")
	}
	t.oneOf("am", "cluster", "cluster", "client")
	t.str("staging", "")
	return 0, 0, 0
}

// untilAt is the time that until names: the next one where it is a time of day.
func untilAt(until string, now time.Time) int64 {
	if until == "" {
		return 0
	}
	if t, err := time.ParseInLocation("2006-01-02 15:04", strings.Replace(until, "T", " ", 1), now.Location()); err == nil {
		return t.UnixNano()
	}
	t, err := time.ParseInLocation("15:04", until, now.Location())
	if err != nil {
		return 0
	}
	y, m, d := now.Date()
	at := time.Date(y, m, d, t.Hour(), t.Minute(), 0, 0, now.Location())
	if !at.After(now) {
		at = time.Date(y, m, d+1, t.Hour(), t.Minute(), 0, 0, now.Location())
	}
	return at.UnixNano()
}
