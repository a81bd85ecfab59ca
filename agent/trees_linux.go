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
func (t *trees) workdir(ctx context.Context, j *wire.Job, p wire.Proc) (string, error) {
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
	to := t.privateOf(j, p)
	var err error
	if len(s.Outputs) > 0 {
		err = t.a.outputs.begins(ctx, p)
	}
	if err == nil {
		err = t.make(ctx, s.DirSum, to)
	}
	if err != nil {
		return "", errs.Wrap(errs.Unknown, err, "bringing the working directory to node %s", t.a.cfg.Node)
	}
	if len(s.Outputs) > 0 {
		_ = os.Link(t.packed(s.DirSum), to+packedSuffix) // where that cannot be, it is brought again
	}
	return to, nil
}

// privateOf is the copy that a process runs in, or would if the node did not see its job's
// directory.
func (t *trees) privateOf(j *wire.Job, p wire.Proc) string {
	if len(j.Spec.Outputs) > 0 {
		return t.copyOf(p.Try)
	}
	return filepath.Join(t.root(j.Job), "workdir")
}

// isPrivate reports whether a directory is in the copy that a process runs in.
func (t *trees) isPrivate(j *wire.Job, p wire.Proc, dir string) bool {
	real, err := filepath.EvalSymlinks(t.privateOf(j, p))
	return err == nil && within(real, dir)
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

// checkpoint gives the directory of a step that a rank resumes from. Where the record is
// not shared, it has that rank's part, and those of other ranks that are or were here.
func (t *trees) checkpoint(ctx context.Context, j *wire.Job, path string, rank uint32) (string, error) {
	rel := inRecord(j.Job, path)
	if rel == "" || t.seesRecord(j) {
		return path, nil
	}
	part := fmt.Sprintf("%s/rank-%d", rel, rank)
	to := filepath.Join(t.root(j.Job), rel)
	err := t.once(ctx, filepath.Join(t.root(j.Job), part), func(tmp string) error {
		return t.get(ctx, wire.Tree{Job: j.Job, Path: part}, func(r io.Reader) error { return unpack(r, tmp, "") })
	})
	if err != nil {
		return "", errs.Wrap(errs.Unknown, err, "bringing the checkpoint to node %s", t.a.cfg.Node)
	}
	return to, nil
}

// keep gives a rank's part of a checkpoint to the head, and has it here for a rank that
// resumes from it.
func (t *trees) keep(ctx context.Context, j *wire.Job, part, from string) error {
	err := t.put(ctx, wire.TreePut{Tree: wire.Tree{Job: j.Job, Path: part}}, func(w io.Writer) error { return bundle.PackAll(ctx, w, from) })
	if err != nil {
		return err
	}
	to := filepath.Join(t.root(j.Job), part)
	_ = os.RemoveAll(to) // of the same step, reported again
	err = t.once(ctx, to, func(tmp string) error {
		if err := os.Remove(tmp); err != nil {
			return err
		}
		return copyTree(ctx, from, tmp)
	})
	if err != nil { // then it is brought back when it is wanted
		t.a.log.Debug("a checkpoint is not kept here", "job", j.Job, "err", err)
	}
	return nil
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

// once makes what is to be at a path, unless it is there: make gets an empty directory that
// is given the name. Whoever wants the same meanwhile waits.
func (t *trees) once(ctx context.Context, to string, make func(tmp string) error) error {
	ctx, cancel := context.WithTimeout(ctx, treeBound)
	defer cancel()
	for {
		t.mu.Lock()
		turn := t.turns[to]
		if turn == nil {
			turn = t.turn(to)
			t.mu.Unlock()
			defer t.over(to, turn)
			break
		}
		t.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	t.tidy()
	err := os.MkdirAll(filepath.Dir(to), 0o700)
	var tmp string
	if err == nil {
		tmp, err = os.MkdirTemp(filepath.Dir(to), ".new-")
	}
	if err != nil {
		return diskErr(err, "the files of a job on node %s", t.a.cfg.Node)
	}
	defer os.RemoveAll(tmp) // nothing, once it has its name
	if err := make(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, to); err != nil {
		return diskErr(err, "the files of a job on node %s", t.a.cfg.Node)
	}
	return nil
}

// turn begins one; mu must be held.
func (t *trees) turn(to string) chan struct{} {
	c := make(chan struct{})
	t.turns[to] = c
	return c
}

func (t *trees) over(to string, c chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(c)
	delete(t.turns, to)
}

// get hands a tree of the head's to use, as it comes: compressed.
func (t *trees) get(ctx context.Context, tree wire.Tree, use func(io.Reader) error) error {
	return t.withHead(ctx, wire.MsgTreeGet, wire.TreeGet{Tree: tree}, func(st *session.Stream) error {
		if _, err := readAnswer[struct{}](st); err != nil {
			return err
		}
		return use(patient{st})
	})
}

// packed is a working directory as it came, which stays here for the next job with the same
// one.
func (t *trees) packed(sum string) string { return filepath.Join(t.a.cfg.Dir, "trees", sum, "packed") }

// open reads the tar stream of a working directory, which is brought here if it is not.
func (t *trees) open(ctx context.Context, sum string) (io.ReadCloser, error) {
	path := t.packed(sum)
	err := t.once(ctx, filepath.Dir(path), func(tmp string) error {
		return t.get(ctx, wire.Tree{Sum: sum}, func(r io.Reader) error {
			f, err := os.Create(filepath.Join(tmp, filepath.Base(path)))
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(f, r)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	_ = os.Chtimes(filepath.Dir(path), time.Now(), time.Now()) // used now
	return openPacked(path)
}

// packedSuffix is behind the name of a copy with outputs at another name of what it was
// made of: by the end of its task eight other working directories may have been here.
const packedSuffix = ".packed"

// madeOf reads the tar stream that the copy at a place was made of.
func (t *trees) madeOf(ctx context.Context, sum, at string) (io.ReadCloser, error) {
	if in, err := openPacked(at + packedSuffix); err == nil {
		return in, nil
	}
	return t.open(ctx, sum)
}

func openPacked(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "what the working directory is made of")
	}
	z, err := bundle.Decompress(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &unpacked{z, f}, nil
}

// unpacked closes the file with the stream.
type unpacked struct {
	io.ReadCloser
	f *os.File
}

func (u *unpacked) Close() error {
	_ = u.ReadCloser.Close()
	return u.f.Close()
}

// make makes a copy of a working directory.
func (t *trees) make(ctx context.Context, sum, to string) error {
	return t.once(ctx, to, func(tmp string) error {
		in, err := t.open(ctx, sum)
		if err != nil {
			return err
		}
		defer in.Close()
		err = untar(in, tmp, sum)
		if errs.Is(err, errs.Corrupt) {
			_ = os.RemoveAll(filepath.Dir(t.packed(sum)))
		}
		return err
	})
}

func unpack(r io.Reader, to, sum string) error {
	z, err := bundle.Decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	return untar(z, to, sum)
}

// untar unpacks a tar stream to its end, which has a sum unless that is "".
func untar(r io.Reader, to, sum string) error {
	h := sha256.New()
	in := io.TeeReader(r, h)
	if err := bundle.Unpack(in, to); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return errs.Wrap(errs.Corrupt, err, "unpacking")
	}
	if sum != "" && hex.EncodeToString(h.Sum(nil)) != sum {
		return errs.New(errs.Corrupt, "it came with other contents than it was said to have")
	}
	return nil
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
// longest, and the working directories likewise.
func (t *trees) tidy() {
	forget(filepath.Join(t.a.cfg.Dir, "jobs"), maxJobs, func(name string) bool {
		var job wire.JobID
		n, _ := fmt.Sscan(name, &job)
		return n == 1 && !t.a.starts.has(job)
	})
	forget(filepath.Join(t.a.cfg.Dir, "trees"), maxJobs, func(name string) bool { return name[0] != '.' })
}

// forget removes those of the entries that may go but for the most that were used last.
func forget(dir string, most int, may func(string) bool) {
	ents, _ := os.ReadDir(dir)
	var idle []os.FileInfo
	for _, e := range ents {
		if fi, err := e.Info(); err == nil && may(e.Name()) {
			idle = append(idle, fi)
		}
	}
	slices.SortFunc(idle, func(a, b os.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, fi := range idle[min(len(idle), most):] {
		_ = os.RemoveAll(filepath.Join(dir, fi.Name()))
	}
}
