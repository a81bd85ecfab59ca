package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// site is a Slurm whose nodes are pretend hosts h1, h2, ..., each with a network, a name,
// processes, /tmp and /dev/shm of its own; the laptop is the login node.
type site struct {
	*slurmtest.Cluster
	net   *testkit.Net
	hosts []*testkit.Host
	home  *testkit.Home // of a user on the login node
}

type siteOptions struct {
	nodes int
	names string // of hosts, before their number; "" = h
	slurm slurmtest.Options
	apart []string // hosts that do not see the users' homes
	seen  []string // more that the others see
}

// slurmSite makes one.
func slurmSite(t *testing.T, so siteOptions) *site {
	t.Helper()
	if p := slurmtest.Missing(); p != "" {
		t.Skipf("SKIP: no %s (make setup as root on Debian)", p)
	}
	n := testkit.NewNet(t, "numpy")
	s := &site{net: n, home: n.Laptop}
	o := so.slurm
	var err error
	if o.Dir, err = os.MkdirTemp("", "sl"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(o.Dir) })
	o.Login = &slurmtest.Machine{IP: n.IP, Enter: n.Enter()}
	for i := range so.nodes {
		name := fmt.Sprintf("%s%d", cmp.Or(so.names, "h"), i+1)
		ho := testkit.HostOptions{Shared: []string{o.Dir}}
		if !slices.Contains(so.apart, name) {
			ho.Shared = append(append(ho.Shared, filepath.Dir(s.home.Dir), filepath.Dir(testkit.Binary(t))), so.seen...)
		}
		h := n.Host(name, ho)
		s.hosts = append(s.hosts, h)
		o.On = append(o.On, slurmtest.Machine{Name: name, IP: h.IP, Enter: h.Enter()})
	}
	s.Cluster = slurmtest.New(t, o)
	s.home.Env = append(s.home.Env, s.Env()...)
	return s
}

// clean fails where a node holds anything of ours, or was drained.
func (s *site) clean(t *testing.T, hosts ...*testkit.Host) {
	t.Helper()
	if left := s.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
	for _, h := range hosts {
		if left := h.Left(); len(left) > 0 {
			t.Errorf("left on %s: %q", h.Name, left)
		}
	}
	if bad := s.OK(t, "sinfo", "-h", "-t", "drain", "-o", "%N %E"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}

// demo is the main job, in a cluster that is up or in a batch script.
const demo = `set -e
launcher run --array 0-99 -- sh -c 'hostname; sleep 0.05'
launcher train -n 8 train.py
launcher sweep sweep.toml
`

func isDemo(t *testing.T, out string, hosts []*testkit.Host) {
	t.Helper()
	for _, x := range hosts {
		if strings.Count(out, x.Name+"\n") == 0 {
			t.Errorf("no task of the array ran on %s", x.Name)
		}
	}
	if !strings.Contains(out, optimum+"8\n") || !strings.Contains(out, "best: trial ") {
		t.Errorf("the demo: %s", out)
	}
}

// TestRootSlurmUp: the main job on four nodes that a Slurm gives, and nothing is left.
func TestRootSlurmUp(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 4})
	h := s.home
	digits(t, h)
	h.Write("queue.toml", slurmSpec("min = 4\nmax = 4"))
	if out := h.OK("up", "queue.toml"); !strings.Contains(out, "cluster queue is up: 4 nodes") {
		t.Errorf("up: %q", out)
	}
	h.Write("demo.sh", demo)
	r := testkit.Finish(h.Program(t.Context(), "bash", "demo.sh"))
	if r.Code != 0 {
		t.Errorf("%s", r)
	}
	isDemo(t, r.Out, s.hosts)
	h.OK("down", "queue")
	s.clean(t, s.hosts...)
}

// TestRootSlurmBatch: the same in a batch script of the user's own.
func TestRootSlurmBatch(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 4})
	digits(t, s.home)
	out := batch(t, s.home, s.Cluster, "-N 4 -n 4 --ntasks-per-node=1 -c 2", demo)
	isDemo(t, out, s.hosts)
	s.clean(t, s.hosts...)
}

// wall puts rules into the network of the login node.
func (s *site) wall(t *testing.T, rules string) {
	t.Helper()
	line := append(s.net.Enter(), "nft", "table inet wall {\n"+rules+"\n}")
	if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("nft: %v %s", err, out)
	}
}

// slurmOnly permits new connections to Slurm's daemons and to nothing else.
const slurmOnly = "ct state established,related accept; iif lo accept; tcp dport { 6817, 6818 } accept; drop; "

// Nodes that cannot connect to the login node are reached from there; where that is not
// permitted either, it is said.
func TestRootSlurmWall(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 2})
	h := s.home
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 2"))
	s.wall(t, "chain i { type filter hook input priority 0; "+slurmOnly+"}")
	r := h.Run("up", "queue.toml")
	if r.Code != 0 {
		t.Fatalf("up: %s\n%s\n%s", r, h.OK("status"), h.OK("why", "burst"))
	}
	nodes := h.OK("nodes", "--json")
	if strings.Count(nodes, `"route":"slurm"`) != 2 {
		t.Errorf("nodes that are reached from the login node: %s", nodes)
	}
	gang := func() {
		t.Helper()
		if out := h.OK("run", "--nodes", "2", "--", "sh", "-c", "hostname"); !strings.Contains(out, "h1\n") || !strings.Contains(out, "h2\n") {
			t.Errorf("a gang on both: %q", out)
		}
	}
	gang()
	for _, pid := range h.PIDs("head") { // with it goes the other end of all connections
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	gang()
	h.OK("down", "queue")
	s.clean(t, s.hosts...)

	s.wall(t, "chain o { type filter hook output priority 0; "+strings.Replace(slurmOnly, "iif", "oif", 1)+"}")
	up := h.Start("up", "queue.toml")
	testkit.Eventually(t, testkit.Bound, func() string {
		st, why := h.Run("status"), h.Run("why", "burst")
		for _, want := range []string{"does not reach the head by TCP (", "nor does ", "sbatch"} {
			if !strings.Contains(st.Out, want) || !strings.Contains(why.Out, want) {
				return fmt.Sprintf("%q is not said: %s %s", want, st, why)
			}
		}
		return ""
	})
	up.Signal(os.Interrupt)
	up.Wait()
	h.OK("down", "queue")
	s.clean(t, s.hosts...)
}

// held is a task that ends when the file "go" is there.
const held = "echo start $LAUNCHER_TASK_ID $(hostname); until [ -e go ]; do sleep 0.1; done; echo done $LAUNCHER_TASK_ID $(hostname)"

// A node without power, and one that is cut off with its agent: their work is done
// elsewhere, the one that is cut off ends what it has by itself, and nothing is left.
func TestRootSlurmLost(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 4})
	h := s.home
	h.Write("queue.toml", strings.Replace(slurmSpec("min = 3\nmax = 3\nnodes_per_job = 1"), "[[pool]]", "[head]\ngrace = \"20s\"\n[[pool]]", 1))
	h.OK("up", "queue.toml")
	run := h.Start("run", "--array", "0-5", "--", "sh", "-c", held)
	var at []*testkit.Host
	testkit.Eventually(t, testkit.Bound, func() string {
		at = at[:0]
		for _, x := range s.hosts {
			if strings.Count(run.Out(), " "+x.Name+"\n") == 2 {
				at = append(at, x)
			}
		}
		if len(at) != 3 {
			return "started: " + run.Out()
		}
		return ""
	})
	off, cut, spare := at[0], at[1], s.hosts[0]
	for _, x := range s.hosts {
		if !slices.Contains(at, x) {
			spare = x
		}
	}
	off.PowerOff()
	cut.Down()
	began := time.Now()
	testkit.Eventually(t, 3*testkit.Bound, func() string {
		if strings.Count(run.Out(), " "+spare.Name+"\n") != 2 {
			return "the work of lost nodes is not elsewhere: " + run.Out()
		}
		return ""
	})
	elsewhere := time.Since(began)
	testkit.Eventually(t, 3*testkit.Bound, func() string {
		if left := ours(cut); len(left) > 0 {
			return fmt.Sprintf("on the node that is cut off: %q", left)
		}
		return ""
	})
	t.Logf("elsewhere after %s, the node that was cut off empty after %s", elsewhere.Round(time.Second), time.Since(began).Round(time.Second))
	h.Write("go", "")
	r := run.Wait()
	if r.Code != 0 || strings.Count(r.Out, "done ") != 6 || strings.Contains(r.Out, "done "+off.Name) {
		t.Errorf("%s", r)
	}
	for i := range 6 {
		if strings.Count(r.Out, fmt.Sprintf("done 1.%d ", i)) != 1 {
			t.Errorf("element %d: %s", i, r.Out)
		}
	}
	cut.Up()
	h.OK("down", "queue")
	s.clean(t, at[1], at[2], spare)
}

// ours are the processes of the user on a host but for Slurm's own.
func ours(h *testkit.Host) []string {
	return slices.DeleteFunc(h.Processes(), func(p string) bool { return strings.Contains(p, "slurmstepd") })
}

// scancel by somebody, of a cluster's nodes and of a script with launcher in it, leaves
// nothing, and the cluster goes on.
func TestRootSlurmScancel(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 2, slurm: slurmtest.Options{Lines: []string{"KillWait=30"}}}) // as it is by default
	h := s.home
	h.Write("queue.toml", slurmSpec("max = 2"))
	h.OK("up", "queue.toml")
	h.OK("run", "--nodes", "2", "--", "true")
	s.OK(t, "scancel", strings.Fields(s.OK(t, "squeue", "-h", "-o", "%A"))[0])
	empty := func() {
		t.Helper()
		began := time.Now()
		defer func() { t.Logf("nothing is left %s after scancel", time.Since(began).Round(time.Second/10)) }()
		testkit.Eventually(t, 2*testkit.Bound, func() string {
			left := s.OK(t, "squeue", "-h")
			for _, x := range s.hosts {
				left += strings.Join(x.Left(), " ")
			}
			return left
		})
	}
	empty()
	if out := h.OK("run", "--", "echo", "again"); out != "again\n" {
		t.Errorf("after scancel: %q", out)
	}
	h.OK("down", "queue")
	s.clean(t, s.hosts...)

	path := h.Write("job.sh", "#!/bin/bash\n#SBATCH -N 2 -n 2 -o job.out\nlauncher run --nodes 2 -- sh -c 'echo begun; exec sleep 600'\n")
	if r := testkit.Finish(h.Program(t.Context(), "sbatch", path)); r.Code != 0 {
		t.Fatal(r)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.Read("job.out"); strings.Count(out, "begun") != 2 {
			return "the script says " + out
		}
		return ""
	})
	s.OK(t, "scancel", strings.Fields(s.OK(t, "squeue", "-h", "-o", "%A"))[0])
	empty()
	s.clean(t, s.hosts...)
}

// Two users' clusters on one node never meet.
func TestRootSlurmUsers(t *testing.T) {
	slurmtest.Whole(t)
	two := testkit.NewAs(t, testkit.PlainUser(t, 2))
	s := slurmSite(t, siteOptions{nodes: 1, slurm: slurmtest.Options{CPUs: 4}, seen: []string{filepath.Dir(two.Dir)}})
	one := s.home
	two.Enter = append(slices.Clone(s.net.Enter()[:4]), "-S", strconv.Itoa(two.User.UID), "-G", strconv.Itoa(two.User.GID), "--")
	two.Env = append(two.Env, s.Env()...)
	for _, h := range []*testkit.Home{one, two} {
		h.Write("queue.toml", slurmSpec("min = 1\nmax = 1"))
		h.OK("up", "queue.toml")
	}
	for _, h := range []*testkit.Home{one, two} {
		if out := h.OK("run", "--", "sh", "-c", "id -un; ls /tmp/launcher-*/* 2>/dev/null | wc -l"); !strings.HasPrefix(out, h.User.Name+"\n") {
			t.Errorf("as %s: %q", h.User.Name, out)
		}
		if out := h.OK("nodes", "--json"); strings.Count(out, `"id":`) != 1 {
			t.Errorf("nodes of %s: %s", h.User.Name, out)
		}
	}
	one.OK("down", "queue")
	if out := two.OK("run", "--", "hostname"); out != "h1\n" {
		t.Errorf("after the other one's down: %q", out)
	}
	two.OK("down", "queue")
	s.clean(t, s.hosts...)
}

// A node that does not see the users' homes says what to do, and with that works.
func TestRootSlurmHomeless(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 2, apart: []string{"h2"}})
	h := s.home
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 2"))
	up := h.Start("up", "queue.toml")
	testkit.Eventually(t, testkit.Bound, func() string {
		st, why := h.Run("status"), h.Run("why", "burst")
		for _, want := range []string{"shared_home = false"} {
			if !strings.Contains(st.Out, want) || !strings.Contains(why.Out, want) {
				return fmt.Sprintf("%q is not said: %s %s", want, st, why)
			}
		}
		return ""
	})
	up.Signal(os.Interrupt)
	up.Wait()
	h.OK("down", "queue")
	s.clean(t, s.hosts...)
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 2\nshared_home = false"))
	h.OK("up", "queue.toml")
	if out := h.OK("run", "--nodes", "2", "--", "hostname"); !strings.Contains(out, "h1\n") || !strings.Contains(out, "h2\n") {
		t.Errorf("a gang on both: %q", out)
	}
	h.OK("down", "queue")
	s.clean(t, s.hosts...)
}

// With several networks on each machine the one that is named is used, by a node that has to
// be reached from the login node too.
func TestRootSlurmInterface(t *testing.T) {
	slurmtest.Whole(t)
	s := slurmSite(t, siteOptions{nodes: 2})
	s.net.Second(s.hosts...)
	h := s.home
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 2\n[network]\ninterface = \"eth1\""))
	look := func(route string) {
		t.Helper()
		h.OK("up", "queue.toml")
		nodes := h.OK("nodes", "--json")
		if strings.Count(nodes, `"addr":"10.78.0.`) != 2 || strings.Count(nodes, `"route":"`+route+`"`) != 2 {
			t.Errorf("nodes: %s", nodes)
		}
		if out := h.OK("run", "--nodes", "2", "--", "sh", "-c", "echo $MASTER_ADDR"); strings.Count(out, "10.78.0.") != 2 {
			t.Errorf("where a gang meets: %q", out)
		}
		h.OK("down", "queue")
		s.clean(t, s.hosts...)
	}
	look("direct")
	s.wall(t, "chain i { type filter hook input priority 0; "+slurmOnly+"}")
	look("slurm")
}
