package configs

import (
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"launcher/wire"
)

// Cluster is a cluster spec with its defaults filled in.
type Cluster struct {
	Path string // absolute path of the file; with Name it is the cluster's identity
	Text string // the file as it was read
	Name string

	Where    string // where the head runs: auto | here | pool:NAME
	Replicas int
	Grace    time.Duration // how long an agent lives on without a head

	ObjectMemory string // per node: "30%" or "20GiB"
	Spill        string // directory for objects that do not fit; may hold $VARIABLES of the node

	Ports     string // "20000-20100"; "" = the kernel chooses
	Interface string // name of the network interface to use; "" = by route

	Encrypt string // all | control

	Pools []Pool
}

// Pool is one [[pool]].
type Pool struct {
	Name      string
	Backend   string
	Min, Max  int           // Max 0 = as many as the backend gives
	Idle      time.Duration // 0 = never given back
	Hold      bool          // keep what is idle, also below Min
	Total     time.Duration // 0 = no bound on the chain of successor jobs
	Until     string
	MaxJobs   int
	Setup     []string
	Env       []string // KEY=VALUE
	Python    string   // absolute, or a name to look up on the node; "" = the node's python3
	Container string
	Resources *wire.Resources // instead of what detection finds; nil = detect
	Labels    map[string]string
	Share     string         // yield | ignore; "" = yield, but for cores
	Options   map[string]any // the backend's own keys as they stand in the file
	Hosts     []string       // the machines that they list, of an ssh pool

	Line int // of its [[pool]] header, for messages of the backend's own checks
}

// LoadCluster reads and checks a cluster spec. The error, of kind Invalid or Unbuilt,
// holds Faults; NotFound and Permission say that there is no file to read.
func LoadCluster(path string) (*Cluster, error) {
	text, err := readFile(path, "the cluster spec")
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, unreadable(path, err, "the cluster spec")
	}
	if real, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(real, filepath.Base(abs))
	}
	return ParseCluster(path, abs, text)
}

// ParseCluster checks the text of a cluster spec. name is used in messages; paths in
// the text are taken relative to the directory of abs.
func ParseCluster(name, abs string, text []byte) (*Cluster, error) {
	root, faults := parseTOML(name, text)
	if faults != nil {
		return nil, faults.asError()
	}
	f := &file{name: name}
	t, err := f.root(root)
	if err != nil {
		return nil, err
	}
	if t.obj.m["pool"] == nil && (t.obj.m["command"] != nil || t.obj.m["kind"] != nil || t.obj.m["sweep"] != nil) {
		return nil, mistaken(name, "it is a job file, not a cluster spec; hand it to launcher submit (or launcher sweep)")
	}
	c := &Cluster{Path: abs, Text: string(text)}
	t.version()
	c.Name = t.str("name", DefaultName(abs))
	if err := CheckName(c.Name); err != nil {
		t.fault("name", "%s", err)
	}

	head := t.table("head")
	c.Where = head.str("where", "auto")
	c.Replicas = int(head.integer("replicas", 1, 1, 3))
	if c.Replicas == 2 {
		head.fault("replicas", "2 survives no loss; give 1 or 3")
	}
	c.Grace = head.duration("grace", 10*time.Minute, time.Second, 7*24*time.Hour)

	objects := t.table("objects")
	c.ObjectMemory = objects.str("memory", "30%")
	if err := CheckMemory(c.ObjectMemory); err != nil {
		objects.fault("memory", "%s", err)
	}
	c.Spill = objects.str("spill", "$TMPDIR")
	if c.Spill == "" || !strings.HasPrefix(c.Spill, "/") && !strings.HasPrefix(c.Spill, "$") {
		objects.fault("spill", `%q is not a directory on the node; give an absolute path or one that begins with a variable, such as "$TMPDIR"`, c.Spill)
	}
	objects.done()

	network := t.table("network")
	c.Ports = network.str("ports", "")
	if _, _, err := ParsePorts(c.Ports); err != nil {
		network.fault("ports", "%s", err)
	}
	c.Interface = network.str("interface", "")
	if !interfaceRE.MatchString(c.Interface) {
		network.fault("interface", `%q cannot be the name of a network interface; give one that "ip link" lists, such as "ib0"`, c.Interface)
	}
	network.done()

	security := t.table("security")
	c.Encrypt = security.oneOf("encrypt", "all", "all", "control")
	security.done()

	c.Pools = readPools(t, filepath.Dir(abs))
	checkWhere(head, c)
	head.done()
	t.done()
	if err := f.faults.asError(); err != nil {
		return nil, err
	}
	return c, nil
}

// mistaken is the one fault of a file of another kind.
func mistaken(name, msg string) error {
	return Faults{{File: name, Line: 1, Msg: msg}}.asError()
}

var interfaceRE = regexp.MustCompile(`^[^/\s]{0,15}$`)

func checkWhere(head *table, c *Cluster) {
	pool, isPool := strings.CutPrefix(c.Where, "pool:")
	switch {
	case c.Where == "auto", c.Where == "here", head.bad["where"]:
	case !isPool:
		head.fault("where", `%q is unknown; give "auto", "here" or "pool:NAME"`, c.Where)
	default:
		var names []string
		for _, p := range c.Pools {
			if p.Name == pool {
				if p.Options["shared_home"] == false {
					head.fault("where", "the nodes of pool %s do not see the state directory (shared_home = false), and the head goes only where it is seen; give \"here\", or set LAUNCHER_HOME to a directory that they do see and leave shared_home out", pool)
				}
				return
			}
			names = append(names, p.Name)
		}
		head.fault("where", "there is no pool %q; %s", pool, didYouMean(pool, names))
	}
}

var notInNameRE = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// DefaultName is the name of a cluster whose spec gives none: FOLDER-FILE.
func DefaultName(abs string) string {
	base := strings.TrimSuffix(filepath.Base(abs), filepath.Ext(abs))
	s := notInNameRE.ReplaceAllString(filepath.Base(filepath.Dir(abs))+"-"+base, "-")
	s = strings.Trim(s[:min(len(s), 63)], "._-")
	if s == "" {
		return "cluster"
	}
	return s
}

// HeadConfig is what the head of this cluster is started with. dir is the cluster's
// state directory, home LAUNCHER_HOME, binary the launcher binary.
func (c *Cluster) HeadConfig(dir, home, binary string) wire.HeadConfig {
	roam := "" // the pool into whose allocations it goes
	if pool, ok := strings.CutPrefix(c.Where, "pool:"); ok && c.headPool() == "" {
		roam = pool
	}
	return wire.HeadConfig{
		At: c.headPool(), Roam: roam, Name: c.Name, Dir: dir, Home: home, Binary: binary, SpecPath: c.Path, SpecText: c.Text,
		Pools: c.WirePools(), Grace: int64(c.Grace), Ports: c.Ports, Interface: c.Interface,
		ObjectMemory: c.ObjectMemory, Spill: c.Spill,
	}
}

// headPool is the pool one of whose hosts has the head; "" = it is here. By itself it goes
// away only where all nodes are hosts: others could not be sure to reach it there, and this
// machine is needed anyway. Pools that may be empty would leave it alone on its host.
func (c *Cluster) headPool() string {
	if pool, ok := strings.CutPrefix(c.Where, "pool:"); ok {
		for _, p := range c.Pools {
			if p.Name == pool && len(p.Hosts) > 0 {
				return pool
			}
		}
	}
	if c.Where != "auto" {
		return ""
	}
	some := false
	for _, p := range c.Pools {
		if len(p.Hosts) == 0 {
			return ""
		}
		some = some || p.Min > 0
	}
	if !some {
		return ""
	}
	return c.Pools[0].Name
}

// WirePools is what the head and the broker need to know of the pools.
func (c *Cluster) WirePools() []wire.Pool {
	out := make([]wire.Pool, len(c.Pools))
	for i, p := range c.Pools {
		out[i] = wire.Pool{
			Name: p.Name, Backend: p.Backend, Min: p.Min, Max: p.Max, Idle: int64(p.Idle), Hold: p.Hold,
			Setup: p.Setup, Env: p.Env, Python: p.Python, Container: p.Container,
			Resources: p.Resources, Labels: p.Labels, Share: p.Share, Options: wire.Marshal(p.Options),
			Places: p.Hosts, Total: int64(p.Total), Until: p.Until, UntilAt: untilAt(p.Until, time.Now()), MaxJobs: p.MaxJobs, PerAlloc: p.perAlloc(), Lasts: int64(p.lasts()),
			Apart: p.Backend == "ssh" || p.Options["shared_home"] == false,
		}
	}
	return out
}

// perAlloc is how many nodes one of the backend's allocations has at most; 0 = any number.
func (p *Pool) perAlloc() int {
	n, _ := p.Options["nodes_per_job"].(int64)
	return int(n)
}

// lasts is the most that an allocation of the pool is asked for; 0 = it does not say.
func (p *Pool) lasts() (d time.Duration) {
	of := p.Options["time"]
	if list, ok := of.([]any); ok && len(list) > 0 {
		of = list[len(list)-1]
	}
	if s, ok := of.(string); ok {
		d, _ = ParseDuration(s) // its backend says what is wrong with it
	}
	return d
}

// resolve makes a path of a file absolute: relative to dir, ~ is the user's home.
func resolve(dir, path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

const unbounded = math.MaxInt32
