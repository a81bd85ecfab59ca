// Package logx makes the loggers that long-lived processes of launcher get injected:
// log/slog in one-line text form, into a file that cannot grow without bound.
package logx

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"launcher/internal/errs"
)

// MaxFile is the size at which a log file is moved to NAME.1, replacing an older one.
const MaxFile = 8 << 20

// New gives a logger that writes lines to w.
func New(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: short}))
}

// short drops what makes lines long and says nothing: the zone is the machine's, and
// milliseconds are enough.
func short(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		a.Value = slog.StringValue(a.Value.Time().Format("2006-01-02T15:04:05.000"))
	}
	return a
}

// Discard gives a logger that drops everything.
func Discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Level reads a level by name; an empty or unknown one is Info.
func Level(name string) slog.Level {
	switch strings.ToLower(name) {
	case "debug":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Open gives a logger that appends to a file of mode 0600. Close it after the last use.
func Open(path string, level slog.Level) (*slog.Logger, io.Closer, error) {
	f, err := openFile(path, MaxFile)
	if err != nil {
		return nil, nil, err
	}
	return New(f, level), f, nil
}

// file is an io.Writer of bounded size. A write that fails (the disk is full) is
// dropped: losing a log line must never stop the process that wrote it.
type file struct {
	mu   sync.Mutex
	path string
	max  int64
	f    *os.File
	size int64
}

func openFile(path string, max int64) (*file, error) {
	l := &file{path: path, max: max}
	if err := l.open(); err != nil {
		return nil, errs.Wrap(errs.Unknown, err, "cannot open the log file %s", path)
	}
	return l, nil
}

func (l *file) open() error {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Write appends p and always reports success.
func (l *file) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return len(p), nil
	}
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		l.rotate()
	}
	if l.f != nil {
		n, _ := l.f.Write(p)
		l.size += int64(n)
	}
	return len(p), nil
}

func (l *file) rotate() {
	_ = os.Rename(l.path, l.path+".1")
	_ = l.f.Close()
	l.f = nil
	_ = l.open() // on failure lines are dropped until the process ends
}

// Close closes the file; later lines are dropped.
func (l *file) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
