package launcher

import (
	"context"
	"encoding/json"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"launcher/internal/errs"
)

// agent is a fake agent: it records requests and gives the answers it was told to.
type agent struct {
	mu      sync.Mutex
	seen    []string
	answers []string // "STATUS BODY"; "break" ends the connection
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = append(a.seen, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("X-Launcher-Proc")+" "+string(body)))
	answer := "200 {}"
	if len(a.answers) > 0 {
		answer, a.answers = a.answers[0], a.answers[1:]
	}
	if answer == "break" {
		panic(http.ErrAbortHandler)
	}
	var status int
	for _, c := range answer[:3] {
		status = status*10 + int(c-'0')
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, answer[4:])
}

// inRun makes this process one of a run with a fake agent.
func inRun(t *testing.T, answers ...string) *agent {
	t.Helper()
	outside(t)
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{answers: answers}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: a}}
	s.Start()
	t.Cleanup(s.Close)
	t.Setenv("LAUNCHER_SOCKET", sock)
	t.Setenv("LAUNCHER_PROC", "7.3#2/1")
	t.Setenv("RANK", "1")
	return a
}

// outside makes this process one that launcher did not start.
func outside(t *testing.T) {
	t.Helper()
	for _, k := range []string{"LAUNCHER_SOCKET", "LAUNCHER_PROC", "LAUNCHER_PARAMS", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LAUNCHER_ATTEMPT", "LAUNCHER_TASK_INDEX"} {
		t.Setenv(k, "")
	}
	own.Lock()
	own.stepped, own.step, own.resume = false, 0, nil
	own.Unlock()
}

func TestReport(t *testing.T) {
	a := inRun(t, `200 {"leave":"","deadline":0}`, `200 {"leave":"pruned","deadline":1700000000}`)
	dir := t.TempDir()
	l, err := Report(t.Context(), Metrics{"loss": 0.5}, Step(3))
	if err != nil || l.Now() || !l.Deadline.IsZero() {
		t.Errorf("%+v, %v", l, err)
	}
	l, err = Report(t.Context(), Metrics{"a": math.NaN(), "b": math.Inf(1), "c": math.Inf(-1)}, WithCheckpoint(dir))
	if err != nil || !l.Now() || l.Reason != "pruned" || !l.Deadline.Equal(time.Unix(1700000000, 0)) {
		t.Errorf("%+v, %v", l, err)
	}
	want := []string{`POST /v1/report 7.3#2/1 {"metrics":{"loss":0.5},"step":3}`,
		`POST /v1/report 7.3#2/1 {"metrics":{"a":"NaN","b":"Infinity","c":"-Infinity"},"step":4,"checkpoint":"` + dir + `"}`}
	if !slices.Equal(a.seen, want) {
		t.Errorf("\n got %q\nwant %q", a.seen, want)
	}
}

func TestStepsCountOnFromTheCheckpoint(t *testing.T) {
	a := inRun(t, `200 {"path":"/x","step":5}`)
	for _, o := range [][]ReportOption{nil, nil, {Step(20)}, nil} {
		if _, err := Report(t.Context(), nil, o...); err != nil {
			t.Fatal(err)
		}
	}
	var got []int64
	for _, s := range a.seen {
		if _, body, ok := strings.Cut(s, "1 {"); ok && strings.HasPrefix(s, "POST") {
			var b struct{ Step int64 }
			if err := json.Unmarshal([]byte("{"+body), &b); err != nil {
				t.Fatal(err)
			}
			got = append(got, b.Step)
		}
	}
	if !slices.Equal(got, []int64{6, 7, 20, 21}) {
		t.Error(got)
	}
}

func TestReportRefuses(t *testing.T) {
	a := inRun(t)
	for name, f := range map[string]func() (Leave, error){
		"nameless": func() (Leave, error) { return Report(t.Context(), Metrics{"": 1}, Step(1)) },
		"step":     func() (Leave, error) { return Report(t.Context(), nil, Step(-1)) },
		"dir":      func() (Leave, error) { return Report(t.Context(), nil, Step(1), WithCheckpoint("/nonexistent/x")) },
	} {
		if _, err := f(); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(a.seen) != 0 {
		t.Error(a.seen)
	}
}

func TestCheckpoint(t *testing.T) {
	dir := t.TempDir()
	a := inRun(t, `200 {"path":"`+dir+`","step":5}`)
	for _, sub := range []string{"", "rank-10", "rank-2", "rank-0", "rank-1"} {
		want := filepath.Join(dir, sub)
		if err := os.MkdirAll(want, 0o700); err != nil {
			t.Fatal(err)
		}
		if got, step, err := Checkpoint(t.Context()); got != want || step != 5 || err != nil {
			t.Errorf("%s, %d, %v; want %s", got, step, err, want)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got, _, err := Checkpoint(t.Context()); got != "" || !errs.Is(err, errs.NotFound) {
		t.Errorf("a checkpoint that is gone: %q, %v", got, err)
	}
	if len(a.seen) != 1 {
		t.Error("asked more than once")
	}
}

type trial struct {
	LR     float64 `json:"lr"`
	Hidden int     `json:"hidden"`
}

func TestParams(t *testing.T) {
	inRun(t, `200 {"lr":0.5}`)
	p := trial{LR: 1, Hidden: 8}
	if err := Params(&p); err != nil || p != (trial{0.5, 8}) {
		t.Errorf("%+v, %v", p, err)
	}
	path := filepath.Join(t.TempDir(), "p")
	t.Setenv("LAUNCHER_PARAMS", path)
	for text, want := range map[string]map[string]any{`{"opt":{"lr":1}}`: {"opt": map[string]any{"lr": 1.0}}, "{": nil} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := Params(&m); (err == nil) != (want != nil) || !reflect.DeepEqual(m, want) {
			t.Errorf("%s: %v, %v", text, m, err)
		}
	}
}

func TestShouldLeave(t *testing.T) {
	a := inRun(t, "break", "break", `200 {"leave":"preempted"}`)
	l, err := ShouldLeave(t.Context())
	if err != nil || l.Reason != "preempted" || len(a.seen) != 3 {
		t.Errorf("%+v, %v, %q", l, err, a.seen)
	}
}

func TestRefusals(t *testing.T) {
	for answer, want := range map[string]errs.Kind{
		`409 {"kind":"fenced","msg":"replaced","hints":["end now"]}`: errs.Fenced,
		`400 {"error":{"kind":"invalid","msg":"no"}}`:                errs.Invalid,
		"500 oops": errs.Unavailable, "200 oops": errs.Corrupt,
	} {
		inRun(t, answer)
		if _, err := ShouldLeave(t.Context()); !errs.Is(err, want) {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

func TestAgentGoneOrSilent(t *testing.T) {
	inRun(t)
	t.Setenv("LAUNCHER_SOCKET", filepath.Join(t.TempDir(), "none"))
	if _, err := ShouldLeave(t.Context()); !errs.Is(err, errs.Unavailable) || len(errs.HintsOf(err)) == 0 {
		t.Error(err)
	}
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("LAUNCHER_SOCKET", sock)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := ShouldLeave(ctx); !errs.Is(err, errs.Timeout) {
		t.Error(err)
	}
}

func TestOutside(t *testing.T) {
	outside(t)
	p := trial{LR: 1}
	l, err := Report(t.Context(), Metrics{"x": 1})
	dir, step, err2 := Checkpoint(t.Context())
	s, err3 := ShouldLeave(t.Context())
	if err != nil || err2 != nil || err3 != nil || l.Now() || s.Now() || dir != "" || step != 0 || Params(&p) != nil || p.LR != 1 {
		t.Error(l, err, dir, step, err2, s, err3, p)
	}
	if InRun() || Rank() != 0 || WorldSize() != 1 || Attempt() != 1 || LocalRank() != 0 || TaskIndex() != 0 {
		t.Error("outside a run a process is rank 0 of 1")
	}
}
