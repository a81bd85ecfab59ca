package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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

// slurmSite makes one; apart are hosts that do not see the users' home.
func slurmSite(t *testing.T, nodes int, o slurmtest.Options, apart ...string) *site {
	t.Helper()
	if p := slurmtest.Missing(); p != "" {
		t.Skipf("SKIP: no %s (make setup as root on Debian)", p)
	}
	n := testkit.NewNet(t, "numpy")
	s := &site{net: n, home: n.Laptop}
	var err error
	if o.Dir, err = os.MkdirTemp("", "sl"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(o.Dir) })
	o.Login = &slurmtest.Machine{IP: n.IP, Enter: n.Enter()}
	for i := range nodes {
		name := fmt.Sprintf("h%d", i+1)
		ho := testkit.HostOptions{Shared: []string{o.Dir}}
		if !strings.Contains(" "+strings.Join(apart, " ")+" ", " "+name+" ") {
			ho.Shared = append(ho.Shared, filepath.Dir(s.home.Dir), filepath.Dir(testkit.Binary(t)))
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
	s := slurmSite(t, 4, slurmtest.Options{})
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
	s := slurmSite(t, 4, slurmtest.Options{})
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
	s := slurmSite(t, 2, slurmtest.Options{})
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
