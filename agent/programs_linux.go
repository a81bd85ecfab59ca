package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
	"launcher/wire/session"
)

// maxPrograms bounds the binaries of Go programs that are kept in the cache: those used
// last stay.
const maxPrograms = 16

// programs are the binaries that Go workers run: that of the driver on its own node, the same
// bytes elsewhere, at the same path or brought here by agents.
type programs struct {
	a *agent

	mu sync.Mutex
	of map[[2]string]*program // by job and path; guarded by mu
}

// program is one binary. A worker runs the open file: there may be another one, or none, at
// its path by then.
type program struct {
	path string

	work sync.Mutex // held while it is looked for, which may take long
	file *os.File   // nil = not found yet; guarded by work
	sum  string     // SHA-256 of file; "" = not known; guarded by work
	over bool       // guarded by work

	want string   // its SHA-256 as other nodes say; guarded by programs.mu
	from []uint32 // the nodes that say so; guarded by programs.mu
}

// entry gives the program of a job at a path.
func (p *programs) entry(job, path string) *program {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := [2]string{job, path}
	if p.of[key] == nil {
		p.of[key] = &program{path: path}
	}
	return p.of[key]
}

// keep opens the very file that a driver runs.
func (p *programs) keep(job string, h *sdk.Hello) {
	if h.Language == "python" || h.Kind != sdk.KindDriver {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := [2]string{job, h.Program}
	x := p.of[key]
	if x == nil {
		x = &program{path: h.Program}
	}
	if !x.work.TryLock() { // it is being looked for already
		return
	}
	defer x.work.Unlock()
	if x.file != nil {
		return
	}
	if f, err := os.Open("/proc/" + strconv.Itoa(h.PID) + "/exe"); err == nil {
		x.file, p.of[key] = f, x
	}
}

// offered: another node's agent has tasks for a program, and says which bytes it is.
func (p *programs) offered(h *sdk.PeerHello, from uint32) {
	if h.Sum == "" {
		return
	}
	x := p.entry(h.Job, h.Program)
	p.mu.Lock()
	defer p.mu.Unlock()
	if x.want != h.Sum {
		x.want, x.from = h.Sum, nil
	}
	if !slices.Contains(x.from, from) {
		x.from = append(x.from, from)
	}
}

// forget: a job is over.
func (p *programs) forget(job string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, x := range p.of {
		if k[0] != job {
			continue
		}
		delete(p.of, k)
		p.a.wg.Go(func() { // it may be being looked for
			x.work.Lock()
			defer x.work.Unlock()
			x.over = true
			if x.file != nil {
				x.file.Close()
			}
		})
	}
}

// runs gives the path by which a worker starts a program.
func (p *programs) runs(ctx context.Context, job, path string) (string, error) {
	f, _, err := p.open(ctx, p.entry(job, path), false)
	if err != nil {
		return "", err
	}
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(f.Fd())), nil
}

// sum gives the SHA-256 of a program for other nodes; "" when it is not here.
func (p *programs) sum(ctx context.Context, job, path string) string {
	_, sum, err := p.open(ctx, p.entry(job, path), true)
	if err != nil {
		p.a.log.Debug("a program is not here", "program", path, "err", err)
	}
	return sum
}

// open finds a program: what is open already, the file at its path if it has the bytes that
// are wanted, the cache's, and at last another node's.
func (p *programs) open(ctx context.Context, x *program, sum bool) (*os.File, string, error) {
	x.work.Lock()
	defer x.work.Unlock()
	if x.over {
		return nil, "", errs.New(errs.Cancelled, "the job of the program is over")
	}
	p.mu.Lock()
	want, from := x.want, slices.Clone(x.from)
	p.mu.Unlock()
	var err error
	switch {
	case x.file != nil:
	case want == "":
		if x.file, err = os.Open(x.path); err != nil {
			return nil, "", errs.Wrap(errs.NotFound, err, "node %s does not have the program", p.a.cfg.Node).Hint("give the path of a binary that the node has, or call from the node that has it")
		}
	default:
		if x.file, err = p.find(ctx, x.path, want, from); err != nil {
			return nil, "", err
		}
		x.sum = want
	}
	if sum && x.sum == "" {
		if x.sum, err = sumOf(x.file); err != nil {
			return nil, "", err
		}
	}
	return x.file, x.sum, nil
}

func (p *programs) find(ctx context.Context, path, want string, from []uint32) (*os.File, error) {
	cached := filepath.Join(p.a.cfg.CacheDir, "programs", want)
	for _, at := range []string{path, cached} {
		f, err := os.Open(at)
		if err != nil {
			continue
		}
		if sum, err := sumOf(f); err == nil && sum == want {
			if at == cached {
				_ = os.Chtimes(at, time.Now(), time.Now()) // used now
			}
			return f, nil
		}
		f.Close()
	}
	var last error
	for _, number := range from {
		if last = p.fetch(ctx, number, want, cached); last == nil {
			p.tidy(want)
			return os.Open(cached)
		}
	}
	return nil, errs.Wrap(errs.Unavailable, last, "node %s does not have the program %s, and it did not come from its own node", p.a.cfg.Node, path)
}

// fetch brings a program from another node into the cache.
func (p *programs) fetch(ctx context.Context, number uint32, want, to string) error {
	st, err := p.a.links.stream(ctx, number, 0, wire.StreamPrograms)
	if err != nil {
		return err
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { _ = st.Close() })
	defer stop()
	is, err := askNode[wire.ProgramIs](st, wire.MsgProgram, wire.Program{Sum: want}, wire.MsgProgramIs, writeBound)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return errs.Wrap(errs.Exhausted, err, "the cache of programs")
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".new-*")
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "the cache of programs")
	}
	defer os.Remove(f.Name())
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(patient{st}, is.Size))
	if err == nil {
		err = f.Chmod(0o700)
	}
	// Closed before it has its name: a file that is open for writing cannot be run.
	if e := f.Close(); err == nil {
		err = e
	}
	switch {
	case err != nil:
		return errs.Wrap(errs.Unavailable, err, "bringing a program here")
	case n != is.Size || hex.EncodeToString(h.Sum(nil)) != want:
		return errs.New(errs.Corrupt, "a program came with %d of %d bytes, or with others than it was said to have", n, is.Size)
	}
	if err := os.Rename(f.Name(), to); err != nil {
		return errs.Wrap(errs.Exhausted, err, "the cache of programs")
	}
	return nil
}

// patient reads while something comes.
type patient struct{ *session.Stream }

func (r patient) Read(b []byte) (int, error) {
	_ = r.SetReadDeadline(time.Now().Add(writeBound))
	return r.Stream.Read(b)
}

// tidy removes those programs from the cache that were not used for longest, and what is left
// of a fetch that an agent's end broke off. Those that run are open and stay.
func (p *programs) tidy(keep string) {
	dir := filepath.Join(p.a.cfg.CacheDir, "programs")
	list, _ := os.ReadDir(dir)
	var all []os.FileInfo
	for _, e := range list {
		if i, err := e.Info(); err == nil && i.Name() != keep && (i.Name()[0] != '.' || time.Since(i.ModTime()) > time.Hour) {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b os.FileInfo) int { return cmp.Compare(b.ModTime().UnixNano(), a.ModTime().UnixNano()) })
	for _, i := range all[min(len(all), maxPrograms-1):] {
		_ = os.Remove(filepath.Join(dir, i.Name()))
	}
}

// serveFiles gives another node what workers there need.
func (s *sdkServer) serveFiles(ctx context.Context, st *session.Stream) error {
	_ = st.SetReadDeadline(time.Now().Add(openBound))
	typ, body, err := st.ReadMsg()
	if err != nil {
		return err
	}
	switch typ {
	case wire.MsgProgram:
		var m wire.Program
		if err := wire.Unmarshal(body, &m); err != nil {
			return err
		}
		return s.programs.serve(ctx, st, m)
	case wire.MsgDir:
		var m wire.Dir
		if err := wire.Unmarshal(body, &m); err != nil {
			return err
		}
		return s.dirs.serve(ctx, st, m)
	}
	return errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgProgram)
}

// serve gives a program to another node.
func (p *programs) serve(ctx context.Context, st *session.Stream, m wire.Program) error {
	p.mu.Lock()
	all := make([]*program, 0, len(p.of))
	for _, x := range p.of {
		if x.want == "" || x.want == m.Sum {
			all = append(all, x)
		}
	}
	p.mu.Unlock()
	for _, x := range all {
		f, sum, err := p.open(ctx, x, true)
		if err != nil || sum != m.Sum {
			continue
		}
		i, err := f.Stat()
		if err != nil {
			return errs.Wrap(errs.Unavailable, err, "the program")
		}
		if err := st.WriteMsg(wire.MsgProgramIs, wire.ProgramIs{Size: i.Size()}); err != nil {
			return err
		}
		return sendFile(st, f, i.Size())
	}
	return errs.New(errs.NotFound, "node %s does not have that program any more", p.a.cfg.Node)
}

func sumOf(f *os.File) (string, error) {
	i, err := f.Stat()
	if err != nil || !i.Mode().IsRegular() {
		return "", errs.New(errs.Invalid, "%s is no program", f.Name())
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, i.Size())); err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "reading the program")
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
