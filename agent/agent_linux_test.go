package agent

import (
	"strings"
	"testing"

	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

// TestRunsACommand is the whole way: join, greet, start, output, end.
func TestRunsACommand(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	inProcess(t, h, cfg, supervisortest.Start(t))
	h.up("p-0", 1)
	j := jobOf(1, wire.KindRun, "sh", "-c", "echo out $LAUNCHER_TASK_ID; echo err >&2; exit 3")
	h.give("p-0", j, 1)
	e := h.endOf("p-0", procOf(1, 0))
	if e.Code != 3 || e.Signal != 0 || e.Err != nil || e.Started == 0 || e.Ended < e.Started {
		t.Errorf("ended %+v", e)
	}
	if out := h.output("p-0", procOf(1, 0), 1); out != "out 1.0\n" {
		t.Errorf("stdout %q", out)
	}
	if out := h.output("p-0", procOf(1, 0), 2); out != "err\n" {
		t.Errorf("stderr %q", out)
	}
}

func TestWhatCannotStart(t *testing.T) {
	h := startHead(t, 0)
	inProcess(t, h, h.config(t, "p-0"), supervisortest.Start(t))
	h.up("p-0", 1)
	cases := []struct {
		change func(*wire.Job)
		code   int32
		text   string
	}{
		{func(j *wire.Job) { j.Spec.Command = []string{"no-such-command"} }, 127, "no-such-command"},
		{func(j *wire.Job) { j.Spec.Command = []string{"/etc/passwd"} }, 126, "/etc/passwd"},
		{func(j *wire.Job) { j.Spec.Dir = "/no/such/dir" }, -1, "/no/such/dir"},
		{func(j *wire.Job) { j.Spec.DirToken = ".token" }, 127, "does not see the working directory / "},
		{func(j *wire.Job) { j.Setup = []string{"true", "echo no module; false"} }, -1, "echo no module; false"},
	}
	for i, c := range cases {
		j := jobOf(wire.JobID(i+1), wire.KindRun, "true")
		c.change(&j)
		h.give("p-0", j, 1)
		e := h.endOf("p-0", procOf(j.Job, 0))
		if e.Code != c.code || e.Err == nil || !strings.Contains(e.Err.Msg, c.text) || !strings.Contains(e.Err.Msg, "p-0") {
			t.Errorf("case %d: code %d, %+v; want %d and %q", i, e.Code, e.Err, c.code, c.text)
		}
	}
}

func BenchmarkTrue(b *testing.B) {
	h := startHead(b, 0)
	inProcess(b, h, h.config(b, "p-0"), supervisortest.Start(b))
	n := h.up("p-0", 1)
	b.ResetTimer()
	h.give("p-0", jobOf(1, wire.KindArray, "true"), uint32(b.N))
	h.wait("all tasks", func() bool { return len(n.ended) == b.N })
}
