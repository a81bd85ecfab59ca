package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// Left is the exit code of a program that saved and left because it was asked to.
const Left = 75

// Leave is what launcher answers to a report.
type Leave struct {
	Reason   string    // "" = go on; pruned, deadline, preempted, resize
	Deadline time.Time // by when it should have left; zero when there is none
}

// Now reports whether the program should save and leave.
func (l Leave) Now() bool { return l.Reason != "" }

// Metrics are names and numbers.
type Metrics map[string]float64

// ReportOption adds to a report.
type ReportOption func(*reportBody)

// Step says which step of the training the metrics belong to, 0 or more. Without it
// reports count by themselves from 1, or on from the checkpoint resumed from.
func Step(n int64) ReportOption { return func(b *reportBody) { b.Step = &n } }

// WithCheckpoint hands over a directory that holds all that is needed to go on from
// here. It has been copied when Report returns. In a gang every rank reports each
// checkpointed step, with a directory or without; it counts once all have.
func WithCheckpoint(dir string) ReportOption { return func(b *reportBody) { b.Checkpoint = dir } }

type reportBody struct {
	Metrics    map[string]wire.Number `json:"metrics"`
	Step       *int64                 `json:"step"`
	Checkpoint string                 `json:"checkpoint,omitempty"`
}

// Bounds of waits for the agent, which may be on its way back after a restart.
const (
	askBound        = time.Minute
	checkpointBound = 10 * time.Minute
)

// own is what this process remembers of itself.
var own struct {
	sync.Mutex
	stepped bool
	step    int64
	resume  func() (checkpointAnswer, error)
	note    sync.Once
}

type checkpointAnswer struct {
	Path string `json:"path"`
	Step int64  `json:"step"`
}

// InRun reports whether launcher started this process.
func InRun() bool { return os.Getenv("LAUNCHER_SOCKET") != "" && os.Getenv("LAUNCHER_PROC") != "" }

// Report says how it goes and learns whether to save and leave. Outside a run it checks
// its arguments, says once that nobody listens, and answers that the program go on.
func Report(ctx context.Context, metrics Metrics, opts ...ReportOption) (Leave, error) {
	body := reportBody{Metrics: map[string]wire.Number{}}
	for _, o := range opts {
		o(&body)
	}
	for k, v := range metrics {
		if k == "" {
			return Leave{}, errs.New(errs.Invalid, "a metric without a name")
		}
		body.Metrics[k] = wire.Number(v)
	}
	bound := askBound
	if body.Checkpoint != "" {
		bound = checkpointBound
		dir, err := filepath.Abs(body.Checkpoint)
		if err != nil {
			return Leave{}, errs.Wrap(errs.Invalid, err, "checkpoint %s", body.Checkpoint)
		}
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return Leave{}, errs.New(errs.Invalid, "checkpoint: %s is not a directory", body.Checkpoint)
		}
		body.Checkpoint = dir
	}
	if err := count(ctx, &body); err != nil {
		return Leave{}, err
	}
	if !InRun() {
		own.note.Do(func() { fmt.Fprintln(os.Stderr, "launcher: not in a run, reports go nowhere") })
		return Leave{}, nil
	}
	return askLeave(ctx, http.MethodPost, "/v1/report", body, bound)
}

// count fills in the step.
func count(ctx context.Context, body *reportBody) error {
	if body.Step != nil && *body.Step < 0 {
		return errs.New(errs.Invalid, "step %d is below 0", *body.Step)
	}
	own.Lock()
	defer own.Unlock()
	if body.Step == nil {
		if !own.stepped {
			c, err := resume(ctx)
			if err != nil {
				return err
			}
			own.step = c.Step
		}
		n := own.step + 1
		body.Step = &n
	}
	own.stepped, own.step = true, *body.Step
	return nil
}

// ShouldLeave asks whether to save and leave, without reporting. In tasks and actors it
// tells of their node.
func ShouldLeave(ctx context.Context) (Leave, error) {
	if os.Getenv("LAUNCHER_SOCKET") == "" {
		return Leave{}, nil
	}
	return askLeave(ctx, http.MethodGet, "/v1/should-leave", nil, askBound)
}

func askLeave(ctx context.Context, method, path string, body any, bound time.Duration) (Leave, error) {
	var a struct {
		Leave    string  `json:"leave"`
		Deadline float64 `json:"deadline"`
	}
	if err := ask(ctx, method, path, body, &a, bound); err != nil {
		return Leave{}, err
	}
	l := Leave{Reason: a.Leave}
	if a.Deadline > 0 {
		l.Deadline = time.Unix(int64(a.Deadline), 0)
	}
	return l, nil
}

// Checkpoint is the directory to resume from and the step it belongs to; "" for a fresh
// start. In a gang it is what this rank saved; where it saved nothing, what the first
// rank that did.
// It is launcher's copy: read only.
func Checkpoint(ctx context.Context) (dir string, step int64, err error) {
	own.Lock()
	defer own.Unlock()
	c, err := resume(ctx)
	if err != nil || c.Path == "" {
		return "", 0, err
	}
	if isShard(filepath.Base(c.Path)) {
		return c.Path, c.Step, nil
	}
	entries, err := os.ReadDir(c.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, errs.New(errs.NotFound, "the checkpoint %s is gone: newer ones have taken its place", c.Path).Hint("read it before reporting new ones, or keep more (train keep)")
	}
	first := -1
	for _, e := range entries {
		if n, err := strconv.Atoi(strings.TrimPrefix(e.Name(), "rank-")); err == nil && isShard(e.Name()) {
			if n == Rank() {
				first = n
				break
			}
			if first < 0 || n < first {
				first = n
			}
		}
	}
	if first >= 0 {
		return filepath.Join(c.Path, fmt.Sprintf("rank-%d", first)), c.Step, nil
	}
	return c.Path, c.Step, nil
}

// isShard reports whether a directory is what one rank saved.
func isShard(name string) bool {
	n, ok := strings.CutPrefix(name, "rank-")
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}

// resume asks once; own is locked.
func resume(ctx context.Context) (checkpointAnswer, error) {
	if own.resume == nil {
		var c checkpointAnswer
		if InRun() {
			if err := ask(ctx, http.MethodGet, "/v1/checkpoint", nil, &c, askBound); err != nil {
				return c, err
			}
		}
		own.resume = func() (checkpointAnswer, error) { return c, nil }
	}
	return own.resume()
}

// Params fills v, a pointer to a struct with json tags or to a map, with the parameters
// of this trial. What v holds already are the defaults: fields without a parameter keep
// them, and outside a sweep all do.
func Params(v any) error {
	text := []byte("{}")
	if path := os.Getenv("LAUNCHER_PARAMS"); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return errs.Wrap(errs.Corrupt, err, "LAUNCHER_PARAMS")
		}
		text = b
	} else if InRun() {
		var raw json.RawMessage
		if err := ask(context.Background(), http.MethodGet, "/v1/params", nil, &raw, askBound); err != nil {
			return err
		}
		text = raw
	}
	if err := json.Unmarshal(text, v); err != nil {
		return errs.Wrap(errs.Invalid, err, "the parameters do not fit %T", v)
	}
	return nil
}

// Rank is this process's number among the ranks of its gang, from 0.
func Rank() int { return number("RANK", 0) }

// WorldSize is how many ranks the gang has; 1 when it is none.
func WorldSize() int { return number("WORLD_SIZE", 1) }

// LocalRank is this process's number among the gang's ranks on its node, from 0.
func LocalRank() int { return number("LOCAL_RANK", 0) }

// TaskIndex is the element of the array or the number of the trial.
func TaskIndex() int { return number("LAUNCHER_TASK_INDEX", 0) }

// Attempt is which run of this task it is, from 1: the token for side effects.
func Attempt() int { return number("LAUNCHER_ATTEMPT", 1) }

func number(name string, def int) int {
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return def
	}
	return n
}

// maxAnswer bounds what an agent may answer.
const maxAnswer = 16 << 20

// ask sends one request to the node's agent. A connection that breaks is made again: the
// agent may be on its way back after a restart, and knows a report that comes twice by
// its step.
func ask(ctx context.Context, method, path string, body, out any, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return errs.Wrap(errs.Invalid, err, "cannot send the report")
		}
	}
	where := os.Getenv("LAUNCHER_SOCKET")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return sockpath.Dial(ctx, where) }}}
	for {
		req, err := http.NewRequestWithContext(ctx, method, "http://launcher"+path, bytes.NewReader(payload))
		if err != nil {
			return errs.Wrap(errs.Internal, err, "request %s", path)
		}
		req.Header.Set("X-Launcher-Proc", os.Getenv("LAUNCHER_PROC"))
		req.Header.Set("Content-Type", "application/json")
		status, answer, err := roundTrip(client, req)
		if err == nil {
			return decode(path, status, answer, out)
		}
		slog.Debug("the agent does not answer", "path", path, "err", err)
		if errs.Is(err, errs.NotFound) {
			return errs.Wrap(errs.Unavailable, err, "the agent of this run is gone").Hint("the run may have been ended, or its node's agent killed")
		}
		select {
		case <-ctx.Done():
			kind := errs.Timeout
			if context.Cause(ctx) == context.Canceled {
				kind = errs.Cancelled
			}
			return errs.Wrap(kind, err, "the agent of this run does not answer on %s", where).Hint("the run may have been ended, or its node's agent killed")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func roundTrip(c *http.Client, req *http.Request) (int, []byte, error) {
	resp, err := c.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	return resp.StatusCode, b, err
}

func decode(path string, status int, answer []byte, out any) error {
	if status/100 != 2 {
		type refusal struct {
			Kind  string   `json:"kind"`
			Msg   string   `json:"msg"`
			Hints []string `json:"hints"`
		}
		var r struct {
			refusal
			Error *refusal `json:"error"`
		}
		if json.Unmarshal(answer, &r) == nil {
			if r.Error != nil {
				r.refusal = *r.Error
			}
			if r.Msg != "" {
				return &errs.Error{Kind: kindOf(r.Kind), Msg: r.Msg, Hints: r.Hints}
			}
		}
		return errs.New(errs.Unavailable, "the agent answered %d to %s: %.200s", status, path, strings.TrimSpace(string(answer)))
	}
	if len(answer) > maxAnswer {
		return errs.New(errs.Corrupt, "the agent's answer to %s is larger than %d MiB", path, maxAnswer>>20)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return errs.Wrap(errs.Corrupt, err, "the agent's answer to %s", path)
	}
	return nil
}

// kindOf is the inverse of errs.Kind.String.
func kindOf(name string) errs.Kind {
	for k := errs.Unknown; k <= errs.Fenced; k++ {
		if k.String() == name {
			return k
		}
	}
	return errs.Unknown
}
