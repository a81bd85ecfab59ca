package agent

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/agent/supervisor/supervisortest"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
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

// TestLocalRequests: what programs ask and report over HTTP, and what is refused.
func TestLocalRequests(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	inProcess(t, h, cfg, supervisortest.Start(t))
	h.up("p-0", 1)
	place := t.TempDir()
	j := jobOf(1, wire.KindTrain, "sleep", "100")
	j.Spec.Train = &wire.TrainSpec{Checkpoints: place}
	h.send("p-0", wire.MsgJob, j)
	h.send("p-0", wire.MsgAssign, wire.Assign{Job: 1, Items: []wire.Item{{Index: 0, Attempt: 1, Params: []byte(`{"lr":0.5}`), Checkpoint: place, Step: 6}}})
	msgOf(h, "p-0", "the start", func(r wire.Running) bool { return true })
	sock := filepath.Join(cfg.Dir, "agent.sock")

	ckpt := filepath.Join(t.TempDir(), "out")
	must(t, os.MkdirAll(filepath.Join(ckpt, "sub"), 0o700))
	must(t, os.WriteFile(filepath.Join(ckpt, "sub", "w"), []byte("weights"), 0o600))
	must(t, os.Symlink("sub/w", filepath.Join(ckpt, "link")))
	cases := []struct {
		method, path, proc, body string
		status                   int
		want                     string
	}{
		{"GET", "/v1/params", "1.0#1/0", "", 200, `{"lr":0.5}`},
		{"GET", "/v1/checkpoint", "1.0#1/0", "", 200, `{"path":"` + place + `","step":6}`},
		{"GET", "/v1/should-leave", "1.0#1/0", "", 200, `{"leave":"","deadline":0}`},
		{"POST", "/v1/report", "1.0#1/0", `{"metrics":{"loss":0.5},"step":7}`, 200, `{"leave":"","deadline":0}`},
		{"POST", "/v1/report", "1.0#1/0", `{"metrics":{"loss":"Infinity"}}`, 200, `{"leave":"pruned","deadline":0}`},
		{"GET", "/v1/should-leave", "1.0#1/0", "", 200, `{"leave":"pruned","deadline":0}`},
		{"POST", "/v1/report", "1.0#1/0", `{"step":9,"checkpoint":"` + ckpt + `"}`, 200, `{"leave":"","deadline":0}`},
		{"POST", "/v1/report", "1.0#1/0", `{"checkpoint":"/no/such/dir"}`, 404, "/no/such/dir"},
		{"POST", "/v1/report", "1.0#1/0", `{"checkpoint":"` + place + `"}`, 400, "lies in it"},
		{"POST", "/v1/report", "1.0#1/0", `{"metrics":{"loss":"high"}}`, 400, "not a number"},
		{"POST", "/v1/report", "1.0#1/0", `{"step":-1}`, 400, "below 0"},
		{"POST", "/v1/report", "1.0#1/0", `{"lost":1}`, 400, "unknown field"},
		{"GET", "/v1/params", "", "", 400, "X-Launcher-Proc"},
		{"GET", "/v1/params", "seven", "", 400, "not a process"},
		{"GET", "/v1/params", "1.0#2/0", "", 404, "does not run on node p-0"},
		{"GET", "/v2/params", "1.0#1/0", "", 404, "the agent has no GET /v2/params"},
	}
	for _, c := range cases {
		status, body := ask(t, sock, c.method, c.path, c.proc, c.body)
		if status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s %s %s: %d %s, want %d %s", c.method, c.path, c.proc, c.body, status, body, c.status, c.want)
		}
	}
	r := msgOf(h, "p-0", "the report", func(r wire.Report) bool { return r.Step == 8 })
	if v := r.Metrics["loss"]; v <= 1e300 {
		t.Errorf("the infinite loss came as %v", v)
	}
	r = msgOf(h, "p-0", "the checkpoint", func(r wire.Report) bool { return r.Checkpoint != "" })
	if want := filepath.Join(place, "step-9.a1"); r.Checkpoint != want {
		t.Errorf("checkpoint %s, want %s", r.Checkpoint, want)
	}
	for _, f := range []string{"sub/w", "link"} {
		if b, err := os.ReadFile(filepath.Join(r.Checkpoint, "rank-0", f)); err != nil || string(b) != "weights" {
			t.Errorf("%s: %q, %v", f, b, err)
		}
	}
	// Old ones go when the head says so; nothing that is no checkpoint ever does.
	h.send("p-0", wire.MsgCheckpoint, wire.Checkpoint{Try: r.Proc.Try, Step: 9, Delete: []string{ckpt, r.Checkpoint}})
	wait(t, "the old checkpoint to go", func() bool { _, err := os.Stat(r.Checkpoint); return os.IsNotExist(err) })
	if _, err := os.Stat(ckpt); err != nil {
		t.Errorf("a directory that is no checkpoint was deleted: %v", err)
	}
	h.send("p-0", wire.MsgStop, wire.Stop{Job: 1, All: true, Reason: wire.ReasonCancelled, Grace: int64(time.Second)})
	if e := h.endOf("p-0", procOf(1, 0)); e.Code != 143 || e.Reason != wire.ReasonCancelled {
		t.Errorf("ended %+v", e)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wait asks again and again, for things that send no word of their own.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(bound); !ok(); time.Sleep(5 * time.Millisecond) { // sleep: between two questions, bounded
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func ask(t testing.TB, sock, method, path, proc, body string) (int, string) {
	t.Helper()
	c := &http.Client{Timeout: bound, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return sockpath.Dial(ctx, sock)
	}}}
	req, err := http.NewRequest(method, "http://launcher"+path, strings.NewReader(body))
	must(t, err)
	if proc != "" {
		req.Header.Set("X-Launcher-Proc", proc)
	}
	r, err := c.Do(req)
	must(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	must(t, err)
	return r.StatusCode, strings.TrimSpace(string(b))
}

// TestRelay: a command in a run talks to the head through the agent.
func TestRelay(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	inProcess(t, h, cfg, supervisortest.Start(t))
	h.up("p-0", 1)
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	s, err := session.DialUnix(ctx, filepath.Join(cfg.Dir, "agent.sock"), session.Config{Cluster: "test", Role: secure.RoleClient, Name: "test"})
	must(t, err)
	defer s.Close()
	st, err := s.Open(ctx, wire.StreamRequest)
	must(t, err)
	must(t, st.WriteRaw(wire.MsgJobs, []byte("body")))
	typ, body, err := st.ReadMsg()
	if err != nil || typ != wire.MsgOK || string(body) != "\x12body" {
		t.Errorf("got %#x %q, %v", typ, body, err)
	}
	// Other streams are not for a command.
	st, err = s.Open(ctx, wire.StreamControl)
	must(t, err)
	if _, _, err := st.ReadMsg(); err == nil || !strings.Contains(err.Error(), "passes requests on") {
		t.Errorf("a control stream: %v", err)
	}
}

// TestGarbage: what is no word of ours is turned away, on both doors, and work goes on.
func TestGarbage(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	inProcess(t, h, cfg, supervisortest.Start(t))
	n := h.up("p-0", 1)
	sock := filepath.Join(cfg.Dir, "agent.sock")
	for _, garbage := range []string{"\xff\xff\xff\xff\x01\x04\x00\x00", "\x04\x00\x00\x00\x99\x99\x00\x00", "\x05\x00\x00\x00\x01\x04\x00\x00{", "GET \x00\x00\r\n\r\n", "LNCH\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		for _, where := range []string{"unix " + sock, "tcp " + n.hellos[0].Addr} {
			network, addr, _ := strings.Cut(where, " ")
			c, err := net.Dial(network, addr)
			must(t, err)
			must(t, c.SetDeadline(time.Now().Add(bound)))
			_, _ = c.Write([]byte(garbage))
			// The other side closes; a bounded answer may come first.
			got, err := io.ReadAll(io.LimitReader(c, 1<<20))
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Errorf("%q on %s: the connection stays open", garbage, network)
			}
			if len(got) > 64<<10 {
				t.Errorf("%q on %s: %d bytes of answer", garbage, network, len(got))
			}
			c.Close()
		}
	}
	h.give("p-0", jobOf(1, wire.KindRun, "true"), 1)
	if e := h.endOf("p-0", procOf(1, 0)); e.Code != 0 {
		t.Errorf("ended %+v", e)
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
