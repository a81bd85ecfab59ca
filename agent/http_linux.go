package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
)

const (
	maxBody    = 1 << 20
	askBound   = 20 * time.Second
	idleBound  = 2 * time.Minute
	procHeader = "X-Launcher-Proc"
)

// httpServer answers programs in any language (docs/protocol.md, "HTTP on the agent's
// socket").
type httpServer struct {
	s  *localServer
	l  *oneListener
	sv *http.Server
}

func newHTTPServer(s *localServer) *httpServer {
	h := &httpServer{s: s, l: &oneListener{conns: make(chan net.Conn), addr: s.l.Addr()}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/report", h.report)
	mux.HandleFunc("GET /v1/should-leave", h.simple(core.OpLeave, func(_ wire.Proc, r core.LocalReply) any { return leaveBody(r) }))
	mux.HandleFunc("GET /v1/params", h.simple(core.OpParams, func(_ wire.Proc, r core.LocalReply) any {
		if len(r.Params) == 0 {
			return struct{}{}
		}
		return json.RawMessage(r.Params)
	}))
	mux.HandleFunc("GET /v1/checkpoint", h.simple(core.OpCheckpoint, func(p wire.Proc, r core.LocalReply) any {
		return struct {
			Path string `json:"path"`
			Step int64  `json:"step"`
		}{s.a.trees.local(p.Job, r.Checkpoint), r.Step}
	}))
	mux.Handle("GET /metrics", s.a.metrics.handler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, errs.New(errs.NotFound, "the agent has no %s %s", r.Method, r.URL.Path).
			Hint("there are POST /v1/report, GET /v1/params, GET /v1/should-leave, GET /v1/checkpoint and GET /metrics"))
	})
	h.sv = &http.Server{Handler: mux, ReadHeaderTimeout: firstBytes, IdleTimeout: idleBound, MaxHeaderBytes: 16 << 10}
	return h
}

// serve answers until ctx ends.
func (h *httpServer) serve(ctx context.Context) error {
	h.l.done = ctx.Done()
	h.sv.BaseContext = func(net.Listener) context.Context { return ctx }
	stop := context.AfterFunc(ctx, func() { _ = h.sv.Close() })
	defer stop()
	if err := h.sv.Serve(h.l); err != nil && !isClosed(err) {
		return errs.Wrap(errs.Internal, err, "serving HTTP on the agent's socket")
	}
	return nil
}

// give has a connection served and waits for its end, so that its place is counted.
func (h *httpServer) give(ctx context.Context, c net.Conn) {
	t := &told{Conn: c, done: make(chan struct{})}
	select {
	case h.l.conns <- t:
		<-t.done
	case <-ctx.Done():
		c.Close()
	}
}

// told is a connection that tells of its closing.
type told struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

// Close closes it.
func (t *told) Close() error {
	err := t.Conn.Close()
	t.once.Do(func() { close(t.done) })
	return err
}

// caller is the process that asks.
func caller(r *http.Request) (wire.Proc, error) {
	name := r.Header.Get(procHeader)
	if name == "" {
		return wire.Proc{}, errs.New(errs.Invalid, "the header %s is missing: it says which process asks", procHeader).
			Hint("its value is that of $LAUNCHER_PROC")
	}
	return parseProc(name)
}

// parseProc reads JOB.INDEX#ATTEMPT/RANK.
func parseProc(s string) (p wire.Proc, err error) {
	task, rest, ok := strings.Cut(s, "#")
	attempt, rank, ok2 := strings.Cut(rest, "/")
	t, indexed, err := wire.ParseTask(task)
	a, err1 := strconv.ParseUint(attempt, 10, 32)
	k, err2 := strconv.ParseUint(rank, 10, 32)
	p = wire.Proc{Try: wire.Try{Task: t, Attempt: wire.Attempt(a)}, Rank: uint32(k)}
	if !ok || !ok2 || !indexed || err != nil || err1 != nil || err2 != nil || p.String() != s {
		return wire.Proc{}, errs.New(errs.Invalid, "%.100q is not a process", s).Hint("it is the value of $LAUNCHER_PROC, for example 7.0#1/2")
	}
	return p, nil
}

func leaveBody(r core.LocalReply) any {
	return struct {
		Leave    wire.LeaveReason `json:"leave"`
		Deadline int64            `json:"deadline"`
	}{r.Leave, r.Deadline}
}

// simple is a question without a body.
func (h *httpServer) simple(op core.LocalOp, body func(wire.Proc, core.LocalReply) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := caller(r)
		if name := r.Header.Get(procHeader); op == core.OpLeave && (name == "" || strings.HasPrefix(name, "0.")) {
			p, err = wire.Proc{}, nil // a worker, of job 0: no process of a run
		}
		if err != nil {
			fail(w, err)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), askBound)
		defer cancel()
		reply, err := h.s.ask(ctx, core.Local{Proc: p, Op: op})
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, http.StatusOK, body(p, reply))
	}
}

type reportBody struct {
	Metrics    map[string]wire.Number `json:"metrics"`
	Step       *int64                 `json:"step"`
	Checkpoint string                 `json:"checkpoint"`
}

// parseReport reads the body of a report.
func parseReport(b []byte) (rb reportBody, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&rb); err != nil {
		return rb, errs.Wrap(errs.Invalid, err, "the report").Hint(`it is JSON such as {"metrics":{"loss":0.3},"step":5,"checkpoint":"DIR"}`)
	}
	if d.More() {
		return rb, errs.New(errs.Invalid, "the report: more than one JSON value")
	}
	if rb.Step != nil && *rb.Step < 0 {
		return rb, errs.New(errs.Invalid, "the report: step %d is below 0", *rb.Step)
	}
	return rb, nil
}

// report takes a program's report: the checkpoint is copied first, then the head asked.
func (h *httpServer) report(w http.ResponseWriter, r *http.Request) {
	p, err := caller(r)
	if err != nil {
		fail(w, err)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		fail(w, errs.Wrap(errs.Invalid, err, "the report").Hint("a report has at most %s", wire.Bytes(maxBody)))
		return
	}
	rb, err := parseReport(body)
	if err != nil {
		fail(w, err)
		return
	}
	ev := core.Local{Proc: p, Op: core.OpReport, Step: -1}
	if rb.Step != nil {
		ev.Step = *rb.Step
	}
	if len(rb.Metrics) > 0 {
		ev.Metrics = make(map[string]float64, len(rb.Metrics))
		for k, v := range rb.Metrics {
			ev.Metrics[k] = float64(v)
		}
	}
	if rb.Checkpoint != "" {
		if ev.Checkpoint, err = h.save(r.Context(), p, &ev.Step, rb.Checkpoint); err != nil {
			fail(w, err)
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), askBound)
	defer cancel()
	reply, err := h.s.ask(ctx, ev)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, leaveBody(reply))
}

// save copies a reported checkpoint to the job's place.
func (h *httpServer) save(ctx context.Context, p wire.Proc, step *int64, dir string) (string, error) {
	ask, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	reply, err := h.s.ask(ask, core.Local{Proc: p, Op: core.OpCheck})
	if err != nil {
		return "", err
	}
	if *step < 0 {
		*step = reply.Step + 1
	}
	return h.s.a.saveCheckpoint(ctx, reply.Job, p, *step, dir)
}

func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		b, status = []byte(`{"kind":"internal","msg":"the answer cannot be written"}`), http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// fail answers with an error.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch errs.KindOf(err) {
	case errs.Invalid, errs.Corrupt:
		status = http.StatusBadRequest
	case errs.NotFound:
		status = http.StatusNotFound
	case errs.Permission:
		status = http.StatusForbidden
	case errs.Fenced, errs.Exists:
		status = http.StatusConflict
	case errs.Exhausted:
		status = http.StatusInsufficientStorage
	case errs.Unavailable, errs.Timeout, errs.Cancelled, errs.Lost:
		status = http.StatusServiceUnavailable
	}
	answer(w, status, errorBody(err))
}
