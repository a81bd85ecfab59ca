package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/bundle"
	"launcher/wire/session"
)

// trees are what of jobs' files is not on file systems that this node shares: the private
// copy of a working directory, and checkpoints that are resumed from. They lie in
// jobs/ID of the node's directory, at the same paths as in the record.
type trees struct {
	a *agent

	mu      sync.Mutex
	turns   map[string]chan struct{} // a path that is being brought; guarded by mu
	records map[string]bool          // whether the node sees a directory of records; guarded by mu
}

func newTrees(a *agent) *trees {
	return &trees{a: a, turns: map[string]chan struct{}{}, records: map[string]bool{}}
}

// maxJobs bounds the jobs whose files are kept here while none of their processes runs.
const maxJobs = 8

// treeBound is how long a tree may be under way, waits for the head included.
const treeBound = time.Hour

func (t *trees) root(job wire.JobID) string {
	return filepath.Join(t.a.cfg.Dir, "jobs", fmt.Sprint(job))
}

// workdir is where a job's processes run: its directory, where this node sees it, else a
// copy of the job's own.
func (t *trees) workdir(ctx context.Context, j *wire.Job) (string, error) {
	s := &j.Spec
	if s.DirToken == "" || bundle.Same(s.Dir, s.DirToken) {
		return s.Dir, nil
	}
	if s.Hidden { // exec: a command for this node
		if home, err := os.UserHomeDir(); err == nil && isDir(home) {
			return home, nil
		}
		return "/", nil
	}
	if s.DirSum == "" {
		return "", errs.New(errs.NotFound, "node %s does not see the working directory %s that the job was submitted from, and it could not be brought there", t.a.cfg.Node, s.Dir).
			Hint("submit from a directory that all nodes share, or a smaller one, or name one with --workdir")
	}
	if len(s.Outputs) > 0 {
		return "", errs.New(errs.Unbuilt, "node %s does not see the working directory %s, and bringing outputs back from there is not in this version", t.a.cfg.Node, s.Dir)
	}
	to := filepath.Join(t.root(j.Job), "workdir")
	if err := t.bring(ctx, wire.Tree{Sum: s.DirSum}, to); err != nil {
		return "", errs.Wrap(errs.Unknown, err, "bringing the working directory to node %s", t.a.cfg.Node)
	}
	return to, nil
}

// seesRecord reports whether the node has the record of jobs where the head has it.
func (t *trees) seesRecord(j *wire.Job) bool {
	state := filepath.Dir(filepath.Dir(j.Record))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records[state] {
		return true
	}
	ca, err := os.ReadFile(filepath.Join(state, "ca.crt"))
	sees := err == nil && bytes.Equal(bytes.TrimSpace(ca), bytes.TrimSpace(t.a.cfg.CA))
	if sees {
		t.records[state] = true
	}
	return sees
}

// inRecord is the part of a path behind the job's record, "" when it lies elsewhere.
func inRecord(job wire.JobID, path string) string {
	if _, rel, ok := strings.Cut(path, fmt.Sprintf("/jobs/%d/checkpoints/", job)); ok {
		return "checkpoints/" + rel
	}
	return ""
}

// checkpoint gives the directory of a step that a process resumes from.
func (t *trees) checkpoint(ctx context.Context, j *wire.Job, path string) (string, error) {
	rel := inRecord(j.Job, path)
	if rel == "" || t.seesRecord(j) {
		return path, nil
	}
	to := filepath.Join(t.root(j.Job), rel)
	if err := t.bring(ctx, wire.Tree{Job: j.Job, Path: rel}, to); err != nil {
		return "", errs.Wrap(errs.Unknown, err, "bringing the checkpoint to node %s", t.a.cfg.Node)
	}
	return to, nil
}

// local is where a checkpoint is for processes here.
func (t *trees) local(job wire.JobID, path string) string {
	if rel := inRecord(job, path); rel != "" {
		if to := filepath.Join(t.root(job), rel); isDir(to) {
			return to
		}
	}
	return path
}

// bring has a tree of the head's at a path here.
func (t *trees) bring(ctx context.Context, tree wire.Tree, to string) error {
	ctx, cancel := context.WithTimeout(ctx, treeBound)
	defer cancel()
	for {
		t.mu.Lock()
		turn := t.turns[to]
		if turn == nil {
			turn = make(chan struct{})
			t.turns[to] = turn
			t.mu.Unlock()
			break
		}
		t.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		close(t.turns[to])
		delete(t.turns, to)
	}()
	if isDir(to) {
		return nil
	}
	t.tidy()
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return diskErr(err, "the files of a job on node %s", t.a.cfg.Node)
	}
	return t.withHead(ctx, wire.MsgTreeGet, wire.TreeGet{Tree: tree}, func(st *session.Stream) error {
		if _, err := readAnswer[struct{}](st); err != nil {
			return err
		}
		tmp, err := os.MkdirTemp(filepath.Dir(to), ".new-")
		if err != nil {
			return diskErr(err, "the files of a job on node %s", t.a.cfg.Node)
		}
		defer os.RemoveAll(tmp) // nothing, once it has its name
		sum := sha256.New()
		in := io.TeeReader(patient{st}, sum)
		err = bundle.Unpack(in, tmp)
		if err == nil {
			_, err = io.Copy(io.Discard, in)
		}
		if err == nil && tree.Sum != "" && hex.EncodeToString(sum.Sum(nil)) != tree.Sum {
			err = errs.New(errs.Corrupt, "it came with other contents than it was said to have")
		}
		if err == nil {
			err = os.Rename(tmp, to)
		}
		return err
	})
}

// put gives a directory to the head.
func (t *trees) put(ctx context.Context, tree wire.Tree, from string) error {
	ctx, cancel := context.WithTimeout(ctx, treeBound)
	defer cancel()
	return t.withHead(ctx, wire.MsgTreePut, wire.TreePut{Tree: tree}, func(st *session.Stream) error {
		if _, err := readAnswer[wire.TreeWanted](st); err != nil {
			return err
		}
		if err := bundle.PackAll(ctx, steady{st}, from); err != nil {
			if e, ok := refusal(st); ok {
				return e
			}
			_ = st.CloseWith(err)
			return err
		}
		_ = st.CloseWrite()
		_, err := readAnswer[struct{}](st)
		return err
	})
}

// refusal is what the head says of a tree that it did not take to its end.
func refusal(st *session.Stream) (error, bool) {
	_ = st.SetReadDeadline(time.Now().Add(time.Second))
	_, err := readAnswer[struct{}](st)
	return err, err != nil && errs.KindOf(err) == errs.Exhausted
}

// steady bounds each write of a stream.
type steady struct{ *session.Stream }

func (w steady) Write(b []byte) (int, error) {
	_ = w.SetWriteDeadline(time.Now().Add(writeBound))
	return w.Stream.Write(b)
}

// withHead runs one request with the head, again when the connection breaks under it.
func (t *trees) withHead(ctx context.Context, typ uint16, req any, do func(*session.Stream) error) error {
	for {
		s, err := t.a.head.session(ctx)
		if err != nil {
			return err
		}
		err = func() error {
			st, err := s.Open(ctx, wire.StreamRequest)
			if err != nil {
				return err
			}
			defer st.Close()
			stop := context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })
			defer stop()
			if err := st.WriteMsg(typ, req); err != nil {
				return err
			}
			return do(st)
		}()
		if err == nil || ctx.Err() != nil || s.Err() == nil {
			return err
		}
	}
}

// tidy removes the files of those jobs that have no processes here and were not used for
// longest.
func (t *trees) tidy() {
	dir := filepath.Join(t.a.cfg.Dir, "jobs")
	ents, _ := os.ReadDir(dir)
	var idle []os.FileInfo
	for _, e := range ents {
		var job wire.JobID
		if n, _ := fmt.Sscan(e.Name(), &job); n != 1 || t.a.starts.has(job) {
			continue
		}
		if fi, err := e.Info(); err == nil {
			idle = append(idle, fi)
		}
	}
	slices.SortFunc(idle, func(a, b os.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, fi := range idle[min(len(idle), maxJobs):] {
		_ = os.RemoveAll(filepath.Join(dir, fi.Name()))
	}
}
