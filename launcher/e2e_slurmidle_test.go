package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// used is what processes have taken of a core so far, and how many threads they have.
func used(t *testing.T, pids []int) (cpu time.Duration, threads int) {
	t.Helper()
	if len(pids) == 0 {
		t.Fatal("no processes to measure")
	}
	for _, pid := range pids {
		f := statFields(pid)
		if len(f) < 18 {
			t.Fatalf("process %d is gone", pid)
		}
		n, err := strconv.Atoi(f[17])
		if err != nil {
			t.Fatal(err)
		}
		cpu += time.Duration((ticks(f[11]) + ticks(f[12])) * float64(time.Second))
		threads += n
	}
	return cpu, threads
}

const (
	idleFor     = 40 * time.Second
	idleBound   = 0.01 // of a core; the goal is half of that
	idleThreads = 64   // of the two processes, as on a machine of 64 cores: Go's, which sleep
)

// What a cluster has on the login node takes next to nothing while nothing happens, whether
// its head is there or in an allocation.
func TestSlurmIdle(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	roaming := testkit.New(t)
	roaming.Env = append(append(roaming.Env, c.Env()...), h.Env[len(h.Env)-1])
	spec := slurmSpec("min = 1\nmax = 1")
	part := map[string][]int{}
	for name, x := range map[string]*testkit.Home{"head and supervisor": h, "front and supervisor": roaming} {
		x.Env = append(x.Env, "GOMAXPROCS=64")
		if x == roaming {
			spec = strings.Replace(spec, "[[pool]]", "[head]\nwhere = \"pool:burst\"\n[[pool]]", 1)
		}
		x.Write("queue.toml", spec)
		x.OK("up", "queue.toml")
		if x == roaming {
			testkit.Eventually(t, testkit.Bound, func() string {
				if out := x.OK("status", "--json"); !strings.Contains(out, `"node":"burst-0"`) {
					return "the head has not moved: " + out
				}
				return ""
			})
		}
		x.OK("run", "--array", "0-99", "--", "true")
		for _, pid := range append(x.PIDs("head"), x.PIDs("head-supervise")...) {
			if env, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ")); !strings.Contains(string(env), "SLURM_JOB_ID=") {
				part[name] = append(part[name], pid)
			}
		}
	}
	time.Sleep(10 * time.Second) // sleep: what has just been done is tidied up
	before := map[string]time.Duration{}
	for name, pids := range part {
		before[name], _ = used(t, pids)
	}
	began := time.Now()
	time.Sleep(idleFor) // sleep: it is measured over that
	took := time.Since(began)
	for name, pids := range part {
		cpu, threads := used(t, pids)
		share := float64(cpu-before[name]) / float64(took)
		t.Logf("%s: %.2f %% of a core, %d threads of %d processes", name, 100*share, threads, len(pids))
		if share > idleBound || threads > idleThreads {
			t.Errorf("%s, idle: %.2f %% of a core (bound %.1f), %d threads (bound %d)", name, 100*share, 100*idleBound, threads, idleThreads)
		}
	}
	h.OK("down", "queue")
	roaming.OK("down", "queue")
}
