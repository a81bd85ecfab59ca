package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// A pool's setup lines are run once on each node; a line that fails is named where people
// look, and what the lines leave is there for commands.
func TestSlurmSetup(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	runs := h.Write("runs", "")
	good := slurmSpec("min = 2\nmax = 2\nsetup = [\"echo run >>" + runs + "\", \"export SITE=here; greet() { echo hello from $SITE; }; export -f greet\"]")
	h.Write("queue.toml", good)
	h.OK("up", "queue.toml")
	if out := h.OK("run", "--array", "0-9", "--", "bash", "-c", "greet"); strings.Count(out, "hello from here\n") != 10 {
		t.Errorf("what setup leaves: %q", out)
	}
	if n := strings.Count(h.Read("runs"), "run"); n != 2 {
		t.Errorf("setup ran %d times on two nodes", n)
	}
	h.OK("down", "queue")

	h.Write("queue.toml", slurmSpec(`min = 1
setup = ["true", "echo no such module; exit 4"]`))
	h.OK("up", "queue.toml")
	const want = ": setup line 2 `echo no such module; exit 4` ended with 4: no such module"
	for _, show := range [][]string{{"status"}, {"why", "burst"}, {"nodes"}} {
		testkit.Eventually(t, testkit.Bound, func() string {
			if r := h.Run(show...); !strings.Contains(r.Out+r.Err, want) {
				return strings.Join(show, " ") + ": " + r.String()
			}
			return ""
		})
	}
	h.Fails(125, []string{want}, "run", "--", "true")
	h.OK("down", "queue")
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
}

// The spec that doctor proposes has no faults for doctor, comes up and works.
func TestSlurmPropose(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, GPUs: 2, Lines: []string{"SelectTypeParameters=CR_Core_Memory"},
		Parts: []string{"PartitionName=Short Nodes=n1 MaxTime=90 MaxNodes=1", "PartitionName=shut Nodes=n2 State=DOWN"}})
	for _, want := range []string{"main", "Short"} {
		args := []string{"doctor", "--propose", "slurm"}
		if want != "main" {
			args = append(args, "--partition", want)
		}
		spec := h.OK(args...)
		for _, w := range []string{`partition = "` + want + `"`, "gres = \"gpu:2\"\n", "cpus = 2 ", `memory = "4000MiB"`, "shut: not for you: it is down"} {
			if !strings.Contains(spec, w) {
				t.Errorf("%q is not in\n%s", w, spec)
			}
		}
		h.Write("site.toml", "name = \"site\"\n"+spec)
		out := h.OK("doctor", "site.toml")
		if !strings.Contains(out, "Slurm would start a job of one node at once") || !strings.Contains(out, "reaches this machine at") {
			t.Errorf("doctor: %s", out)
		}
		h.OK("up", "site.toml")
		if out := h.OK("run", "--cpus", "2", "--", "echo", "on"); out != "on\n" {
			t.Errorf("work on %s: %q", want, out)
		}
		h.OK("down", "site")
	}
	h.Fails(125, []string{"specs are proposed for slurm"}, "doctor", "--propose", "yarn")
	h.Fails(125, []string{"there is no partition nosuch", "main, Short, shut"}, "doctor", "--propose", "slurm", "--partition", "nosuch")
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
}

// The first steps of a newcomer, in a directory with a space in its name: what is printed as a
// command works as it is, and what is said of a job in a batch script needs no cluster that
// has ended with it.
func TestSlurmNewcomer(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	h.Write("my work/x", "")
	sh := func(script string) testkit.Result {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*testkit.Bound)
		defer cancel()
		return testkit.Finish(h.Program(ctx, "sh", "-c", "cd 'my work' || exit; "+script))
	}
	r := sh("launcher doctor --propose slurm > slurm.toml && launcher up --dry-run slurm.toml")
	for _, w := range []string{"0 nodes; for work that needs one, this\n", "#SBATCH --nodes=1\n", "#SBATCH --partition=main\n", "\nexec srun --overlap "} {
		if r.Code != 0 || !strings.Contains(r.Out, w) {
			t.Errorf("%q is not in %s", w, r)
		}
	}
	r = sh("launcher up slurm.toml && launcher run -- echo on && launcher down && launcher status")
	_, again, _ := strings.Cut(r.Err, "hint: `")
	again, _, _ = strings.Cut(again, "`")
	if r.Code != 0 || !strings.Contains(r.Out, "on\n") || !strings.HasPrefix(again, "launcher up ") {
		t.Fatalf("up, run, down: %s", r)
	}
	if r := sh(again + " && launcher down"); r.Code != 0 {
		t.Errorf("%s: %s", again, r)
	}

	h.Write("my work/queue.toml", slurmSpec("min = 1"))
	r = sh("launcher up --emit 'the job' queue.toml")
	use, ok := strings.CutSuffix(strings.TrimSpace(r.Out), " CMD [ARG...]")
	if r.Code != 0 || !ok {
		t.Fatalf("--emit: %s", r)
	}
	if r := sh("sbatch() { command sbatch --wait \"$@\"; }; " + use + " echo in the job; cat 'the job'/*.log"); r.Code != 0 || !strings.Contains(r.Out, "in the job\n") {
		t.Errorf("%s: %s", use, r)
	}

	out := batch(t, h, c, "-N 2 -n 2", "launcher run --array 0-4 -- sh -c 'exit $((LAUNCHER_TASK_INDEX % 3))'; true\n")
	for _, w := range []string{"3 of 5 tasks failed", "TASK  TRY  STATE ", "\n1.1 ", "\n1.2 ", "\n1.4 "} {
		if !strings.Contains(out, w) {
			t.Errorf("%q is not in %s", w, out)
		}
	}
	if strings.Contains(out, "launcher tasks") {
		t.Errorf("a cluster that is gone is to be asked: %s", out)
	}
	nothingOfOurs(t, c)
}

// Every script in examples/slurm is submitted as its own comment says, and the spec there
// comes up.
func TestSlurmExamples(t *testing.T) {
	slurmtest.Whole(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2})
	for _, dir := range []string{"slurm", "digits", "ray"} {
		if err := os.CopyFS(filepath.Join(h.Work, "examples", dir), os.DirFS("../examples/"+dir)); err != nil {
			t.Fatal(err)
		}
	}
	py := testkit.Python(t, "msgpack", "cloudpickle", "numpy")
	h.Env = append(h.Env, "PATH="+filepath.Dir(testkit.Binary(t))+":"+filepath.Dir(py)+":"+os.Getenv("PATH"))
	scripts, _ := filepath.Glob("../examples/slurm/*.sh")
	if len(scripts) != 5 {
		t.Fatalf("scripts %q", scripts)
	}
	want := map[string][]string{
		"array":   {"square of 0 is 0\n", "square of 999 is 998001\n"},
		"train":   {"0.26186455"},
		"sweep":   {"lr", "hidden", "loss", "TRIAL  STATE", "best: trial "}, // nobody can ask for it later
		"ray":     {"all darts: 120000\npi is about 3.1"},
		"several": {"left 0\n", "left 9\n", "right 0\n", "right 9\n"},
	}
	for _, s := range scripts {
		name := strings.TrimSuffix(filepath.Base(s), ".sh")
		ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Bound)
		r := testkit.Finish(h.Program(ctx, "sbatch", "--wait", "--parsable", "examples/slurm/"+name+".sh"))
		cancel()
		log, _ := filepath.Glob(filepath.Join(h.Work, name+"-*.log"))
		if len(log) != 1 || r.Code != 0 {
			t.Errorf("%s: %s, logs %q", name, r, log)
		}
		for _, l := range log {
			out, _ := os.ReadFile(l)
			for _, w := range want[name] {
				if !strings.Contains(string(out), w) {
					t.Errorf("%s: %q is not in\n%s", name, w, out)
				}
			}
		}
	}
	h.OK("up", "examples/slurm/cluster.toml")
	if out := h.OK("run", "--array", "0-99", "--", "sh", "-c", "echo on"); strings.Count(out, "on\n") != 100 {
		t.Errorf("on the spec's cluster: %q", out)
	}
	h.OK("down", "cluster")
	if left := c.OK(t, "squeue", "-h"); left != "" {
		t.Errorf("left in the queue: %q", left)
	}
}

// Nodes that see neither the state directory nor the binary get both, and the key, from
// the login node; what is run there brings its working directory.
func TestSlurmNoSharedHome(t *testing.T) {
	slurmtest.Whole(t)
	h := testkit.New(t)
	c := slurmtest.New(t, slurmtest.Options{Nodes: 2, Hide: []string{filepath.Dir(h.Dir), filepath.Dir(testkit.Binary(t))}})
	h.Env = append(h.Env, c.Env()...)
	if out := c.OK(t, "srun", "sh", "-c", "ls -A "+filepath.Dir(h.Dir)+" "+filepath.Dir(testkit.Binary(t))+" | grep -v :; echo end"); strings.TrimSpace(out) != "end" {
		t.Fatalf("nodes see %q", out)
	}
	h.Write("data.txt", "brought\n")
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 2\nnodes_per_job = 1\nshared_home = false"))
	h.Write("queue1.toml", slurmSpec("min = 2\nmax = 2\nshared_home = false"))
	h.OK("up", "queue.toml")
	if out := h.OK("run", "--nodes", "2", "--", "sh", "-c", "cat data.txt; echo rank $RANK"); strings.Count(out, "brought\n") != 2 || !strings.Contains(out, "rank 0") || !strings.Contains(out, "rank 1") {
		t.Errorf("a gang: %q", out)
	}
	if out, _ := c.Run(t.Context(), "scontrol", "show", "job"); strings.Contains(out, h.Dir) {
		t.Errorf("the state directory is named to Slurm: %s", out)
	}
	jobs, _ := filepath.Glob(filepath.Join(h.Dir, "clusters", "queue", "slurm", "*.json"))
	if len(jobs) != 2 {
		t.Errorf("records %q", jobs)
	}
	h.OK("down", "queue")
	// A batch script of --emit needs a directory that they see, and nothing else.
	scratch, err := os.MkdirTemp("", "seen")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(scratch)
	h.OK("up", "--emit", scratch+"/out", "queue1.toml")
	if r := testkit.Finish(h.Program(t.Context(), "sbatch", "--wait", scratch+"/out/queue.sh", "--nodes", "2", "--", "sh", "-c", "echo rank $RANK in $PWD")); r.Code != 0 {
		t.Errorf("sbatch: %s", r)
	}
	logs, _ := filepath.Glob(scratch + "/out/queue-*.log")
	out := ""
	for _, f := range logs {
		b, _ := os.ReadFile(f)
		out += string(b)
	}
	if !strings.Contains(out, "rank 0 in "+scratch+"/out") || !strings.Contains(out, "rank 1 in "+scratch+"/out") {
		t.Errorf("what --emit wrote: %q %s", logs, out)
	}
	for _, r := range jobs {
		name := strings.TrimSuffix(filepath.Base(r), ".json")
		if left, _ := filepath.Glob("/tmp/launcher-" + strconv.Itoa(os.Getuid()) + "/" + name + "*"); len(left) > 0 {
			t.Errorf("left on nodes: %q", left)
		}
	}
	if bad := c.OK(t, "squeue", "-h") + c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("left in the queue, or drained: %q", bad)
	}
}
