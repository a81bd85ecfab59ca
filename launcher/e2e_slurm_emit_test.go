package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// What --emit writes says what the pool asks for, and the spec beside it nothing of that.
func TestEmit(t *testing.T) {
	h := testkit.New(t)
	h.Write("lab.toml", `version = 1
name = "lab"
[head]
grace = "1m"
[[pool]]
name = "burst"
backend = "slurm"
partition = "gpu"
time = ["1h", "8h"]
gres = "gpu:a100:8"
min = 4
idle = "2m"
total = "48h"
setup = ["module load cuda"]
container = "apptainer://images/it.sif"
env = { MODE = "x" }
args = ["--mail-type=END"]
`)
	h.OK("up", "--emit", "out", "lab.toml")
	script, spec := h.Read("out/lab.sh"), h.Read("out/lab.toml")
	for _, want := range []string{"#SBATCH --nodes=4\n", "#SBATCH --partition=gpu\n", "#SBATCH --time=8:00:00\n", "#SBATCH --time-min=1:00:00\n", "#SBATCH --gres=gpu:a100:8\n", "#SBATCH --mail-type=END\n"} {
		if !strings.Contains(script, want) {
			t.Errorf("no %q in %s", want, script)
		}
	}
	for _, want := range []string{"min = 4\n", "max = 4\n", `grace = "1m"`, "module load cuda", `MODE = "x"`, filepath.Join(h.Work, "images/it.sif")} {
		if !strings.Contains(spec, want) {
			t.Errorf("no %q in %s", want, spec)
		}
	}
	for _, not := range []string{"partition", "gres", "time", "idle", "total", "mail"} {
		if strings.Contains(spec, not) {
			t.Errorf("%q is in %s", not, spec)
		}
	}
	for file, mode := range map[string]os.FileMode{"out/lab.sh": 0o700, "out/lab.toml": 0o600, "out/state": 0o700} {
		if st, err := os.Stat(filepath.Join(h.Work, file)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, wanted %o", file, st, err, mode)
		}
	}
	h.Write("none.toml", "version = 1\nname = \"none\"\n[[pool]]\nname = \"p\"\nbackend = \"slurm\"\n")
	h.Fails(125, []string{"min = 0", "min = N"}, "up", "--emit", "out", "none.toml")

	// The head is in the job of the pool that is named, else of the first that has nodes
	// without being asked; it asks for the others as they stand.
	two := `version = 1
name = "two"
[[pool]]
name = "a"
backend = "slurm"
partition = "long"
min = 1
[[pool]]
name = "b"
backend = "slurm"
partition = "fast"
min = 3
[[pool]]
name = "boxes"
backend = "ssh"
hosts = ["x"]
identity = "keys/id"
`
	for pool, want := range map[string]string{"": "#SBATCH --partition=long\n", "b": "#SBATCH --partition=fast\n"} {
		text := two
		if pool != "" {
			text = strings.Replace(two, "[[pool]]", "[head]\nwhere = \"pool:"+pool+"\"\n[[pool]]", 1)
		}
		h.Write("two.toml", text)
		h.OK("up", "--emit", "out", "two.toml")
		script, spec := h.Read("out/two.sh"), h.Read("out/two.toml")
		other := map[string]string{"": `partition = "fast"`, "b": `partition = "long"`}[pool]
		if !strings.Contains(script, want) || strings.Count(spec, "partition") != 1 || !strings.Contains(spec, other) || strings.Contains(spec, "where") ||
			!strings.Contains(spec, filepath.Join(h.Work, "keys/id")) {
			t.Errorf("with the head in %q: %s\n%s", pool, script, spec)
		}
	}
	h.Write("two.toml", strings.Replace(two, `partition = "fast"`, "", 1))
	h.Fails(125, []string{"pool b names no partition", "pool a"}, "up", "--emit", "out", "two.toml")
	h.Write("apart.toml", "version = 1\nname = \"apart\"\n[[pool]]\nname = \"p\"\nbackend = \"slurm\"\nmin = 1\nshared_home = false\n")
	h.OK("up", "--emit", "out", "apart.toml")
	dir := filepath.Join(h.Work, "out")
	if script := h.Read("out/apart.sh"); !strings.Contains(script, "launcher="+dir+"/launcher\n") || !strings.Contains(script, "#SBATCH --chdir=\""+dir+"\"\n") {
		t.Errorf("for nodes that see nothing else: %s", script)
	}
	if st, err := os.Stat(dir + "/launcher"); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the binary for nodes that see nothing else: %v, %v", st, err)
	}
}

// TestEmitSh: where the head is in no job, sh runs what --emit wrote.
func TestEmitSh(t *testing.T) {
	h := testkit.New(t)
	h.Write("boxes.toml", "version = 1\nname = \"boxes\"\n[[pool]]\nname = \"p\"\nbackend = \"local\"\nnodes = 2\nresources = { cpu = 2 }\n")
	emitted(t, h, "a place/out")
}

// TestSSHEmit: the same on hosts.
func TestSSHEmit(t *testing.T) {
	if os.Getenv("LAUNCHER_TEST_SSH") != "all" {
		t.Skip("SKIP: LAUNCHER_TEST_SSH=all runs what takes long")
	}
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a, b := l.Start("a", testkit.ServerOptions{}), l.Start("b", testkit.ServerOptions{})
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q, %q", hostPort(a), hostPort(b)), "min = 2"))
	emitted(t, h, "out")
	for _, s := range []*testkit.Server{a, b} {
		if left := leftOn(t, s); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
			t.Errorf("left on %s after down: %q", s.Name, left)
		}
	}
}

// emitted runs what --emit makes of boxes.toml, with the binary and nothing else.
func emitted(t *testing.T, h *testkit.Home, dir string) {
	t.Helper()
	h.OK("up", "--emit", dir, "boxes.toml")
	if err := os.Remove(filepath.Join(h.Work, "boxes.toml")); err != nil {
		t.Fatal(err)
	}
	sh := func(args ...string) testkit.Result {
		return testkit.Finish(h.Program(t.Context(), "sh", args...))
	}
	script := filepath.Join(dir, "boxes.sh")
	if r := sh(script, "--nodes", "2", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE"); r.Code != 0 || strings.Count(r.Out, " of 2\n") != 2 {
		t.Errorf("a gang: %s", r)
	}
	if r := sh(script, "sh", "-c", "exit 7"); r.Code != 7 {
		t.Errorf("a command that fails: %s", r)
	}
	r := sh(script)
	_, use, ok := strings.Cut(r.Out, "use it with: ")
	use, end, ok2 := strings.Cut(use, "end it with: ")
	if r.Code != 0 || !ok || !ok2 {
		t.Fatalf("a cluster: %s", r)
	}
	if r := sh("-c", strings.TrimSuffix(strings.TrimSpace(use), "CMD")+"echo from outside"); r.Out != "from outside\n" {
		t.Errorf("%s: %s", use, r)
	}
	if r := sh("-c", end); r.Code != 0 {
		t.Errorf("%s: %s", end, r)
	}
}

// Plain sbatch runs what --emit wrote: a command with its exit code on all nodes, or a
// cluster to be used until the job ends.
func TestSlurmEmit(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Lines: []string{"KillWait=60"}})
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 4\nidle = \"1m\"\nenv = { MODE = \"emitted\" }"))
	h.OK("up", "--emit", "out", "queue.toml")
	run := func(code int, args ...string) string {
		t.Helper()
		log := filepath.Join(h.Work, "out", "queue-*.log")
		old, _ := filepath.Glob(log)
		for _, f := range old {
			_ = os.Remove(f)
		}
		r := testkit.Finish(h.Program(t.Context(), "sbatch", append([]string{"--wait", "out/queue.sh"}, args...)...))
		out := ""
		if logs, _ := filepath.Glob(log); len(logs) == 1 {
			b, _ := os.ReadFile(logs[0])
			out = string(b)
		}
		if r.Code != code {
			t.Fatalf("sbatch: %s\n%s", r, out)
		}
		return out
	}
	out := run(0, "--nodes", "2", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE $MODE ${SLURM_JOB_ID-hidden}")
	if !strings.Contains(out, "rank 0 of 2 emitted hidden\n") || !strings.Contains(out, "rank 1 of 2 emitted hidden\n") {
		t.Errorf("a gang on two nodes: %q", out)
	}
	run(7, "sh", "-c", "exit 7")
	// Two pools: the head in the job of the first asks for the other.
	h.Write("queue.toml", slurmSpec("min = 1\nmax = 1\n[[pool]]\nname = \"more\"\nbackend = \"slurm\"\npartition = \"main\"\ncpus = 2\ntime = \"5m\"\nresources = { cpu = 2 }\nmin = 1\nmax = 1"))
	h.OK("up", "--emit", "out", "queue.toml")
	if out := run(0, "--nodes", "2", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE"); strings.Count(out, " of 2\n") != 2 {
		t.Errorf("a gang on two pools: %q", out)
	}
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 4"))
	h.OK("up", "--emit", "out", "queue.toml")
	job := strings.TrimSpace(testkit.Finish(h.Program(t.Context(), "sbatch", "--parsable", "out/queue.sh")).Out)
	testkit.Eventually(t, testkit.Bound, func() string {
		b, _ := os.ReadFile(filepath.Join(h.Work, "out", "queue-"+job+".log"))
		_, use, ok := strings.Cut(string(b), "use it with: ")
		if !ok {
			return "job " + job + ": " + string(b)
		}
		use = strings.TrimSuffix(strings.TrimSpace(use), "CMD") + "echo from outside"
		if r := testkit.Finish(h.Program(t.Context(), "sh", "-c", use)); r.Out != "from outside\n" {
			return use + ": " + r.String()
		}
		return ""
	})
	submitted := testkit.Finish(h.Program(t.Context(), "sbatch", "--parsable", "out/queue.sh", "sh", "-c", "touch began; sleep 600"))
	c.OK(t, "scancel", job)
	job = strings.TrimSpace(submitted.Out)
	testkit.Eventually(t, testkit.Bound, func() string {
		if _, err := os.Stat(filepath.Join(h.Work, "began")); err != nil {
			return submitted.String() + c.OK(t, "squeue")
		}
		return ""
	})
	c.OK(t, "scancel", job)
	testkit.Eventually(t, 2*testkit.Bound, func() string {
		if left := c.OK(t, "squeue", "-h"); left != "" {
			return "left in the queue: " + left
		}
		return ""
	})
	if bad := c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}
