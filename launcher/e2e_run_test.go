package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
)

// labSpec is a cluster of two small nodes that fits on any machine.
const labSpec = `version = 1
name = "lab"
[[pool]]
name = "local"
backend = "local"
nodes = 2
resources = { cpu = 4, memory = "512MiB" }
`

// lab brings a cluster up for a test; it must go down without a trace.
func lab(t *testing.T, spec ...string) *testkit.Home {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	h := testkit.New(t)
	h.Write("lab.toml", append(spec, labSpec)[0])
	h.OK("up", "lab.toml")
	t.Cleanup(func() {
		if r := h.Run("down", "lab"); r.Code != 0 {
			t.Errorf("down: %s", r)
		}
	})
	return h
}

// lastJSON is the last line of --json output.
func lastJSON(t *testing.T, out string) map[string]any {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var m map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &m); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if m["version"] != 1.0 {
		t.Errorf("no version in %s", lines[len(lines)-1])
	}
	return m
}

func TestRun(t *testing.T) {
	h := lab(t)
	t.Run("streams and codes", func(t *testing.T) {
		for _, c := range []struct {
			script   string
			code     int
			out, err string
		}{
			{"echo $LAUNCHER_TASK_ID", 0, `^\d+\.0\n$`, `^$`},
			{"echo out; echo err >&2; exit 7", 7, `^out\n$`, `^err\n$`},
			{"printf 'no line end'", 0, `^no line end$`, `^$`},
			{"kill -9 $$", 137, `^$`, `job \d+ failed`},
			{"kill $$", 143, `^$`, `job \d+ failed`},
			{"exit 255", 255, `^$`, ``},
			{"exit 127", 127, `^$`, ``},
			{`test -z "$SLURM_JOB_ID" -a "$LAUNCHER_CLUSTER" = lab -a -x "$LAUNCHER" -a "$LAUNCHER_ATTEMPT" = 1 -a "$LAUNCHER_TASK_INDEX" = 0`, 0, `^$`, `^$`},
		} {
			r := h.Run("run", "--", "sh", "-c", c.script)
			r.Err = whatIsSlow.ReplaceAllString(r.Err, "")
			if r.Code != c.code || !match(c.out, r.Out) || !match(c.err, r.Err) {
				if len(r.Out) > 200 {
					r.Out = fmt.Sprintf("%d bytes", len(r.Out))
				}
				t.Errorf("%s: %s", c.script, r)
			}
		}
	})
	t.Run("much", func(t *testing.T) {
		// Output is sent ahead of its acknowledgements: one batch for each would take minutes.
		const n = 40_000_000
		r := h.Run("run", "--", "sh", "-c", fmt.Sprintf(`head -c %d /dev/zero | tr '\0' x`, n))
		if r.Code != 0 || len(r.Out) != n || strings.Trim(r.Out, "x") != "" { // within testkit.Bound
			t.Errorf("%d bytes, exit code %d after %s: %s", len(r.Out), r.Code, r.Took, r.Err)
		}
	})
	t.Run("not started", func(t *testing.T) {
		h.Fails(127, []string{"nosuchcommand"}, "run", "--", "nosuchcommand")
		p := h.Write("notexec", "data")
		h.Fails(126, []string{"notexec"}, "run", "--", p)
		r := h.Run("run", "--json", "--", "nosuchcommand")
		if m := lastJSON(t, r.Out); r.Code != 127 || fmt.Sprint(m["exit"]) != "map[code:127 side:launcher]" {
			t.Errorf("%s", r)
		}
		r = h.Run("run", "--json", "--", "sh", "-c", "echo hi; exit 127")
		if m := lastJSON(t, r.Out); r.Code != 127 || fmt.Sprint(m["exit"]) != "map[code:127 side:command]" || !strings.Contains(r.Out, `"data":"hi\n"`) {
			t.Errorf("%s", r)
		}
	})
	t.Run("directory and environment", func(t *testing.T) {
		if got := h.OK("run", "--", "pwd"); got != h.Work+"\n" {
			t.Errorf("pwd: %q, want %q", got, h.Work)
		}
		h.Fails(125, []string{"--keep-env", "slurm keeps SLURM_*"}, "run", "--keep-env", "--", "true")
		if got := h.OK("run", "--workdir", "/", "--env", "A=b c", "--", "sh", "-c", "pwd; echo $A"); got != "/\nb c\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("time limit", func(t *testing.T) {
		h.Fails(124, nil, "run", "--time", "1s", "--grace", "1s", "--", "sleep", "600")
	})
	t.Run("retries", func(t *testing.T) {
		r := h.Run("run", "--retry-failed", "2", "--", "sh", "-c", "echo try $LAUNCHER_ATTEMPT; test $LAUNCHER_ATTEMPT = 3")
		if r.Code != 0 || r.Out != "try 1\ntry 2\ntry 3\n" {
			t.Errorf("%s", r)
		}
		h.Fails(1, nil, "run", "--retry-failed", "1", "--", "false")
	})
	t.Run("array", func(t *testing.T) {
		out := h.OK("run", "--array", "0-99", "--", "sh", "-c", "echo i $LAUNCHER_TASK_INDEX")
		if n := strings.Count(out, "i "); n != 100 || !strings.Contains(out, "i 99\n") {
			t.Errorf("%d lines: %s", n, out)
		}
		r := h.Fails(3, []string{"2 of 10 tasks failed"}, "run", "--array", "0-9", "--", "sh", "-c", "case $LAUNCHER_TASK_INDEX in 4|7) exit 3;; esac")
		id := regexp.MustCompile(`job (\d+) failed`).FindStringSubmatch(r.Err)
		if id == nil {
			t.Fatalf("%s", r)
		}
		if out := h.OK("tasks", id[1], "--failed"); strings.Count(out, "failed") != 2 || !strings.Contains(out, id[1]+".4") {
			t.Errorf("tasks --failed: %s", out)
		}
		h.Write("names", "ada\ngrace hopper\n")
		if out := h.OK("run", "--each-line", "names", "--", "echo", "<{}>"); !strings.Contains(out, "<ada>\n") || !strings.Contains(out, "<grace hopper>\n") {
			t.Errorf("each line: %q", out)
		}
		if r := h.RunInput("one\ntwo\n", "run", "--each-line", "-", "--", "sh", "-c", "echo $LAUNCHER_LINE"); r.Code != 0 || !strings.Contains(r.Out, "two\n") {
			t.Errorf("lines of stdin: %s", r)
		}
	})
	t.Run("gang", func(t *testing.T) {
		out := h.OK("run", "--nodes", "2", "--ranks-per-node", "2", "--", "sh", "-c", "echo $RANK/$WORLD_SIZE $LOCAL_RANK")
		for _, want := range []string{"0/4 0\n", "1/4 1\n", "2/4 0\n", "3/4 1\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in %q", want, out)
			}
		}
		r := h.Run("run", "--nodes", "2", "--", "sh", "-c", "test $RANK = 0 && sleep 600; exit 5")
		if r.Code != 5 {
			t.Errorf("a rank that fails ends the others: %s", r)
		}
	})
	t.Run("too much", func(t *testing.T) {
		h.Fails(125, []string{"error: "}, "run", "--cpus", "64", "--", "true")
		h.Fails(125, []string{"error: "}, "run", "--nodes", "3", "--", "true")
		h.Fails(125, []string{"error: "}, "run", "--pool", "nosuch", "--", "true")
		h.Fails(125, []string{"error: "}, "exec", "nosuch-0", "--", "true")
	})
	t.Run("exec", func(t *testing.T) {
		before := h.OK("jobs", "--all")
		if out := h.OK("exec", "local-1", "--", "sh", "-c", "echo on $LAUNCHER_NODE"); !strings.HasPrefix(out, "on ") {
			t.Errorf("%q", out)
		}
		if after := h.OK("jobs", "--all"); strings.Count(after, "\n") != strings.Count(before, "\n") {
			t.Errorf("exec is listed among the jobs:\n%s", after)
		}
	})
	t.Run("look", func(t *testing.T) {
		if out := h.OK("nodes"); !strings.Contains(out, "local-0") || !strings.Contains(out, "local-1") {
			t.Error(out)
		}
		if out := h.OK("pools"); !regexp.MustCompile(`local +local +2 +2 +2 +0 +0`).MatchString(out) {
			t.Error(out)
		}
		if out := h.OK("status"); !strings.Contains(out, "cluster   lab, up") {
			t.Error(out)
		}
		m := lastJSON(t, h.OK("status", "--json"))
		if c := m["cluster"].(map[string]any); c["name"] != "lab" || c["state"] != "up" || len(m["nodes"].([]any)) != 2 {
			t.Errorf("%v", m)
		}
		if m := lastJSON(t, h.OK("nodes", "--json")); len(m["nodes"].([]any)) != 2 {
			t.Errorf("%v", m)
		}
		if out := h.OK("why", "1"); out == "" {
			t.Error("why says nothing")
		}
		h.Fails(125, []string{"no job 999"}, "logs", "999")
		h.Fails(125, []string{"999"}, "attach", "999")
		h.Fails(125, []string{"999"}, "cancel", "999")
		h.Fails(125, []string{"999"}, "wait", "999")
	})
}

// whatIsSlow is what run says on a machine on which everything takes its time.
var whatIsSlow = regexp.MustCompile(`(?m)^launcher: (job \d+ waits: |the head is away; ).*\n`)

func match(re, s string) bool { return regexp.MustCompile(`(?s)` + re).MatchString(s) }

func TestDetachAttach(t *testing.T) {
	h := lab(t)
	gate := filepath.Join(h.Work, "gate")
	id := strings.TrimSpace(h.OK("run", "--detach", "--", "sh", "-c", "echo begin; while ! test -e gate; do sleep 0.02; done; echo end; exit 9"))
	if !regexp.MustCompile(`^\d+$`).MatchString(id) {
		t.Fatalf("--detach printed %q, want a number", id)
	}
	att, logs := h.Start("attach", id), h.Start("logs", "-f", id)
	for _, r := range []*testkit.Running{att, logs} {
		testkit.Eventually(t, testkit.Bound, func() string {
			if r.Out() == "begin\n" {
				return ""
			}
			return fmt.Sprintf("output %q %q", r.Out(), r.Err())
		})
	}
	// Ctrl-C in attach only detaches.
	third := h.Start("attach", id)
	testkit.Eventually(t, testkit.Bound, func() string {
		if third.Out() == "begin\n" {
			return ""
		}
		return fmt.Sprintf("output %q %q", third.Out(), third.Err())
	})
	third.Signal(os.Interrupt)
	if r := third.Wait(); r.Code != 0 || !strings.Contains(r.Err, "detached") {
		t.Errorf("Ctrl-C in attach: %s", r)
	}
	h.Fails(124, []string{"has not ended after 0.05s"}, "wait", "--time", "50ms", id)
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := att.Wait(); r.Code != 9 || r.Out != "begin\nend\n" {
		t.Errorf("attach: %s", r)
	}
	if r := logs.Wait(); r.Code != 0 || r.Out != "begin\nend\n" {
		t.Errorf("logs -f: %s", r)
	}
	h.Fails(9, nil, "wait", id)
	if m := lastJSON(t, h.Run("wait", "--json", id).Out); fmt.Sprint(m["exit"]) != "map[code:9 side:command]" {
		t.Errorf("%v", m)
	}
}

// running starts `launcher run` of a script that says "up" and waits for that.
func running(t *testing.T, h *testkit.Home, args ...string) *testkit.Running {
	t.Helper()
	r := h.Start(append([]string{"run"}, args...)...)
	testkit.Eventually(t, testkit.Bound, func() string {
		if strings.HasPrefix(r.Out(), "up") {
			return ""
		}
		return fmt.Sprintf("output %q %q", r.Out(), r.Err())
	})
	return r
}

func TestInterrupt(t *testing.T) {
	h := lab(t)
	t.Run("once", func(t *testing.T) {
		r := running(t, h, "--", "sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done")
		r.Signal(os.Interrupt)
		if res := r.Wait(); res.Code != 130 || res.Out != "up\nbye\n" {
			t.Errorf("%s", res)
		}
	})
	t.Run("grace", func(t *testing.T) {
		r := running(t, h, "--grace", "300ms", "--", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.02; done")
		r.Signal(os.Interrupt)
		if res := r.Wait(); res.Code != 130 {
			t.Errorf("%s", res)
		}
	})
	t.Run("twice", func(t *testing.T) {
		r := running(t, h, "--grace", "10m", "--", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.02; done")
		r.Signal(os.Interrupt)
		testkit.Eventually(t, testkit.Bound, func() string {
			if strings.Contains(r.Err(), "Ctrl-C again") {
				return ""
			}
			return fmt.Sprintf("errors %q", r.Err())
		})
		r.Signal(os.Interrupt)
		if res := r.Wait(); res.Code != 130 {
			t.Errorf("%s", res)
		}
	})
	t.Run("death of the client detaches", func(t *testing.T) {
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGKILL} {
			file := fmt.Sprintf("done-%d", sig)
			r := running(t, h, "--", "sh", "-c", "echo up; while ! test -e go; do sleep 0.02; done; sleep 0.1; touch "+file)
			r.Signal(sig)
			r.Wait()
			h.Write("go", "")
			testkit.Eventually(t, testkit.Bound, func() string {
				if _, err := os.Stat(filepath.Join(h.Work, file)); err == nil {
					return ""
				}
				return "the job did not go on"
			})
			_ = os.Remove(filepath.Join(h.Work, "go"))
		}
	})
	t.Run("cancel", func(t *testing.T) {
		r := running(t, h, "--", "sh", "-c", "echo up; exec sleep 600")
		_, rows, _ := strings.Cut(h.OK("jobs"), "\n")
		h.OK("cancel", "--grace", "1s", strings.Fields(rows)[0])
		if res := r.Wait(); res.Code != 130 {
			t.Errorf("%s", res)
		}
	})
}
