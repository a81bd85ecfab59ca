package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// confined is a site that tracks jobs by control groups and confines them to the cores,
// memory and devices that were granted, with nodes of a name that no other test has: the
// groups of all pretend hosts lie in one tree.
func confined(t *testing.T, name string, nodes int) *site {
	t.Helper()
	for _, c := range []string{"cpuset", "memory", "devices", "freezer"} {
		if _, err := os.Stat("/sys/fs/cgroup/" + c + "/tasks"); err != nil {
			t.Skipf("SKIP: no control groups of version 1: %v", err)
		}
	}
	return slurmSite(t, siteOptions{nodes: nodes, names: fmt.Sprintf("%s%dn", name, os.Getpid()), slurm: slurmtest.Options{GPUs: 3,
		Cgroup: []string{"CgroupMountpoint=/sys/fs/cgroup", "CgroupAutomount=no", "ConstrainCores=yes", "ConstrainRAMSpace=yes", "ConstrainDevices=yes"},
		Lines:  []string{"SelectTypeParameters=CR_Core_Memory"}}})
}

func confinedSpec(more string) string {
	return strings.NewReplacer("cpus = 2\n", "", "resources = { cpu = 2, slot = 2 }\n", "").Replace(slurmSpec("")) + more + "\n"
}

// groupsLeft are control groups of jobs.
func (s *site) groupsLeft() (out []string) {
	for _, h := range s.hosts {
		g, _ := filepath.Glob("/sys/fs/cgroup/*/slurm_" + h.Name + "/uid_*/job_*")
		out = append(out, g...)
	}
	return out
}

// Where the site confines jobs, a node offers exactly what was granted, each task has its
// own of it, and work that takes more memory is ended by that and says so; the node stays.
func TestRootSlurmConfined(t *testing.T) {
	slurmtest.Whole(t)
	s := confined(t, "ca", 1)
	h := s.home
	h.Write("queue.toml", confinedSpec("cpus = 1\nmemory = \"400MiB\"\ngres = \"gpu:1\"\nmin = 2\nmax = 2\nnodes_per_job = 1"))
	h.OK("up", "queue.toml")
	nodes := h.OK("nodes", "--json")
	if n := strings.Count(nodes, `"total":{"cpu":1,"gpu":1,"memory":419430400}`); n != 2 {
		t.Errorf("two nodes on one machine, each of a core, a GPU and 400 MiB: %s", nodes)
	}
	// Both at once, or they wait for ever: each has another core, and another device by the
	// same number, since its group hides the others.
	mine := fmt.Sprintf(`touch here-$LAUNCHER_TASK_INDEX; until [ $(ls here-* | wc -l) = 2 ]; do sleep 0.05; done
for i in 0 1 2; do e=$( (: <%s/gpu$i) 2>&1); case $e in *permitted*) ;; *) echo "device $i number $CUDA_VISIBLE_DEVICES";; esac; done
grep Cpus_allowed_list /proc/self/status`, s.Dir)
	out := strings.Split(strings.TrimSpace(h.OK("run", "--array", "0-1", "--gpus", "1", "--", "sh", "-c", mine)), "\n")
	slices.Sort(out)
	if want := []string{"Cpus_allowed_list:\t0", "Cpus_allowed_list:\t1", "device 0 number 0", "device 1 number 0"}; !slices.Equal(out, want) {
		t.Errorf("two tasks have %q, want %q", out, want)
	}

	const hog = "x = bytearray(800 << 20); print(len(x))"
	r := h.Run("run", "--", "/usr/bin/python3", "-c", hog)
	if r.Code != 137 || !strings.Contains(r.Err, "the kernel killed it for want of memory: there are 400MiB") {
		t.Errorf("a task that takes more than was granted: %s", r)
	}
	r = h.Run("run", "--nodes", "2", "--", "sh", "-c", "[ $RANK = 0 ] || exec sleep 600; exec /usr/bin/python3 -c '"+hog+"'")
	if r.Code == 0 || !strings.Contains(r.Err, "the kernel killed it for want of memory") {
		t.Errorf("a rank that takes more than was granted: %s", r)
	}
	if again := h.OK("nodes", "--json"); strings.Count(again, `"state":"up"`) != 2 || strings.Count(again, `"agent_restarts":0`) != 2 {
		t.Errorf("the nodes after that: %s", again)
	}
	if jobs := s.OK(t, "squeue", "-h", "-t", "all", "-o", "%T"); jobs != "RUNNING\nRUNNING\n" {
		t.Errorf("the jobs after that: %q", jobs)
	}
	h.OK("down", "queue")
	s.clean(t, s.hosts...)

	out = strings.Split(batch(t, h, s.Cluster, "-N 1 -n 1 -c 2 --mem=400M --gres=gpu:2", "launcher run -- /usr/bin/python3 -c '"+hog+"'; echo code $?\nlauncher run --cpus 2 -- nproc"), "\n")
	if !slices.Contains(out, "code 137") || !slices.Contains(out, "2") || !strings.Contains(out[0], "for want of memory") {
		t.Errorf("in a batch script of both cores: %q", out)
	}
	testkit.Eventually(t, testkit.Bound, func() string { return s.OK(t, "squeue", "-h") }) // sbatch does not wait for the epilog
	s.clean(t, s.hosts...)
}

// What our processes leave behind, and what does not listen, is in the job's groups, and
// ends with it.
func TestRootSlurmConfinedEnds(t *testing.T) {
	slurmtest.Whole(t)
	s := confined(t, "cb", 2)
	h := s.home
	h.Write("queue.toml", confinedSpec("cpus = 2\nmemory = \"400MiB\"\nmax = 2"))
	for _, how := range []string{"scancel", "guard", "down"} {
		h.OK("up", "queue.toml")
		// A process that has left its group, its session and its environment, and hears nothing.
		run := h.Start("run", "--nodes", "2", "--", "sh", "-c", `env -i setsid sh -c 'trap "" TERM INT HUP; (while :; do sleep 1; done) & echo out' & wait; trap "" TERM; echo begun; while :; do sleep 1; done`)
		testkit.Eventually(t, testkit.Bound, func() string {
			if strings.Count(run.Out(), "begun\n") != 2 {
				return "the gang says " + run.Out()
			}
			return ""
		})
		if len(s.groupsLeft()) == 0 {
			t.Fatal("jobs have no control groups")
		}
		run.Signal(os.Kill)
		run.Wait()
		switch how {
		case "scancel":
			s.OK(t, "scancel", strings.Fields(s.OK(t, "squeue", "-h", "-o", "%A"))...)
		case "guard": // the first process of the task, when nothing else of it can act
			for _, x := range s.hosts {
				signalOurs(x, syscall.SIGSTOP, "")
				signalOurs(x, syscall.SIGKILL, "slurm-node")
			}
		}
		left := func() (out []string) {
			out = append(s.groupsLeft(), strings.Fields(s.OK(t, "squeue", "-h", "-o", "%A-%T"))...)
			for _, x := range s.hosts {
				out = append(out, ours(x)...)
			}
			return out
		}
		if how != "down" {
			testkit.Eventually(t, 2*testkit.Bound, func() string {
				if l := left(); len(l) > 0 {
					return fmt.Sprintf("after %s: %q", how, l)
				}
				return ""
			})
		}
		h.OK("down", "queue")
		if l := left(); len(l) > 0 {
			t.Errorf("after down: %q", l)
		}
		s.clean(t) // files of nodes that were killed stay until the next one
	}
}

// signalOurs sends a signal to the user's processes on a host whose command line has a word.
func signalOurs(x *testkit.Host, sig syscall.Signal, word string) {
	for _, p := range ours(x) {
		if pid, line, _ := strings.Cut(p, " "); strings.Contains(line, word) {
			n, _ := strconv.Atoi(pid)
			_ = syscall.Kill(n, sig)
		}
	}
}
