package workers

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/spool"
)

const (
	// lineBound: longer lines, and lines that do not end for lineWait, are passed on in parts.
	lineBound = 64 << 10
	lineWait  = 200 * time.Millisecond
	// logBound is the size at which a job's log file is begun anew; one older is kept.
	logBound = 16 << 20
)

// outputs are the two pipes of a worker.
type outputs struct{ outR, outW, errR, errW *os.File }

func newOutputs() (*outputs, error) {
	var o outputs
	var err error
	if o.outR, o.outW, err = spool.Pipe(); err != nil {
		return nil, err
	}
	if o.errR, o.errW, err = spool.Pipe(); err != nil {
		o.outR.Close()
		o.outW.Close()
		return nil, err
	}
	return &o, nil
}

func (o *outputs) closeWrite() {
	o.outW.Close()
	o.errW.Close()
}

func (o *outputs) closeRead() {
	o.outR.Close()
	o.errR.Close()
}

// follow reads what a worker prints. mu is held.
func (p *Pool) follow(w *worker, o *outputs) {
	p.read(w, 1, o.outR)
	p.read(w, 2, o.errR)
}

// read reads one of a worker's pipes until its end, and passes whole lines on. mu is held.
func (p *Pool) read(w *worker, stream uint8, f *os.File) {
	r, err := pollable(f)
	if err != nil {
		p.c.Log.Error("the output of a worker cannot be read", "worker", w.w.Name, "err", err)
		return
	}
	log := p.logs[w.w.Job]
	if log == nil {
		log = &logFile{p: p, path: filepath.Join(p.c.Dir, w.w.Job+".log")}
		p.logs[w.w.Job] = log
	}
	w.outs.Add(1)
	p.wg.Go(func() {
		defer w.outs.Done()
		defer r.Close()
		stop := context.AfterFunc(p.ctx, func() { _ = r.Close() })
		defer stop()
		emit := func(b []byte) {
			log.write(b)
			p.c.Output(w.w, stream, b)
		}
		lines(r, emit)
	})
}

// pollable is f for Go's poller, which lets a read be given up.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	return os.NewFile(uintptr(fd), "output"), err
}

// lines gives emit what comes from r, cut at the ends of lines where there are some.
func lines(r *os.File, emit func([]byte)) {
	buf, n := make([]byte, 4<<10), 0
	for {
		var until time.Time
		if n > 0 {
			until = time.Now().Add(lineWait)
		}
		_ = r.SetReadDeadline(until)
		k, err := r.Read(buf[n:])
		n += k
		end := bytes.LastIndexByte(buf[:n], '\n') + 1
		if errors.Is(err, os.ErrDeadlineExceeded) {
			end, err = n, nil
		}
		if err != nil || n == lineBound && end == 0 {
			end = n
		}
		if end > 0 {
			emit(buf[:end])
			n = copy(buf, buf[end:n])
		}
		if err != nil {
			return
		}
		if n == len(buf) || k > len(buf)/2 && len(buf) < lineBound {
			buf = append(buf, make([]byte, min(len(buf), lineBound-len(buf)))...)
		}
	}
}

// logFile is the output of a job's workers on this node, for who looks later.
type logFile struct {
	p    *Pool
	path string

	mu   sync.Mutex
	f    *os.File
	size int64
	bad  bool
}

func (l *logFile) write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil && !l.open() {
		return
	}
	if l.size += int64(len(b)); l.size > logBound {
		l.f.Close()
		_ = os.Rename(l.path, l.path+".1")
		if l.f = nil; !l.open() {
			return
		}
		l.size = int64(len(b))
	}
	if _, err := l.f.Write(b); err != nil {
		l.fail(err)
	}
}

func (l *logFile) open() bool {
	if l.bad {
		return false
	}
	err := os.MkdirAll(filepath.Dir(l.path), 0o700)
	if err == nil {
		l.f, err = os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	}
	if err != nil {
		l.fail(err)
		return false
	}
	if st, err := l.f.Stat(); err == nil {
		l.size = st.Size()
	}
	return true
}

// end closes the file for good.
func (l *logFile) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bad = true; l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

// fail gives the file up: the driver still gets the output.
func (l *logFile) fail(err error) {
	l.bad = true
	l.p.c.Log.Warn("the output of workers is not kept on this node any more", "file", l.path, "err", err)
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
