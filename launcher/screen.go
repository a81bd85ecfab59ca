package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// screen lets results, notes and one redrawn progress line share a terminal: the
// progress line is wiped before anything else is written and drawn again after it, and
// only where a line has ended. Without a terminal it only writes.
type screen struct {
	out, err io.Writer
	tty      bool
	width    func() int // of the terminal, now; nil = unknown

	mu    sync.Mutex // guards what follows and the order of writes
	shown string     // the progress line, as drawn
	dirty bool       // shown is on the screen
	mid   bool       // the last thing written did not end its line
	drawn time.Time
}

func newScreen(out, errw io.Writer, tty bool) *screen { return &screen{out: out, err: errw, tty: tty} }

// wipe removes the progress line. s.mu must be held.
func (s *screen) wipe() {
	if s.dirty {
		io.WriteString(s.err, "\r\x1b[K")
		s.dirty = false
	}
}

// draw shows the progress line where it may stand. s.mu must be held.
func (s *screen) draw() {
	if s.tty && s.shown != "" && !s.mid {
		io.WriteString(s.err, "\r"+s.shown+"\x1b[K")
		s.dirty = true
	}
}

// write passes bytes of a program on.
func (s *screen) write(w io.Writer, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	_, err := w.Write(b)
	s.mid = b[len(b)-1] != '\n'
	s.draw()
	return err
}

// line writes a line for people.
func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	if s.mid && s.tty {
		io.WriteString(s.err, "\n")
	}
	s.mid = false
	io.WriteString(s.err, text+"\n")
	s.draw()
}

// progress replaces the progress line, at most 20 times a second. It shows nothing
// where nobody watches.
func (s *screen) progress(text string) {
	if !s.tty {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.width != nil {
		text = fit(text, s.width())
	}
	if text == s.shown || (text != "" && time.Since(s.drawn) < 50*time.Millisecond) {
		return
	}
	s.drawn = time.Now()
	s.shown = text
	if text == "" {
		s.wipe()
		return
	}
	s.draw()
}

// done leaves a clean line behind.
func (s *screen) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	s.shown = ""
}

// bar draws n of total as a bar of width cells, in eighths.
func bar(n, total, width int) string {
	if total <= 0 {
		return strings.Repeat(" ", width)
	}
	eighths := min(n, total) * width * 8 / total
	b := strings.Repeat("█", eighths/8)
	if r := eighths % 8; r > 0 {
		b += string([]rune("▏▎▍▌▋▊▉")[r-1])
	}
	return b + strings.Repeat(" ", width-utf8.RuneCountInString(b))
}

// fit cuts text to the width of a terminal, so that a redrawn line stays one line.
func fit(text string, width int) string {
	if width <= 0 || utf8.RuneCountInString(text) < width {
		return text
	}
	r := []rune(text)
	return string(r[:width-2]) + "…"
}

// lineWriter gathers the output of several processes into whole lines, each with the
// prefix of its process, so that lines of different ranks never mix. Pieces without a
// line end wait for the rest, for a bounded length.
type lineWriter struct {
	emit   func(stream uint8, line []byte) error
	prefix func(k procStream) string
	part   map[procStream][]byte
}

// procStream is one output stream of one process of a job.
type procStream struct {
	index, attempt, rank uint32
	stream               uint8
}

const maxPartial = 64 << 10

func newLineWriter(prefix func(procStream) string, emit func(uint8, []byte) error) *lineWriter {
	return &lineWriter{emit: emit, prefix: prefix, part: map[procStream][]byte{}}
}

func (w *lineWriter) write(k procStream, data []byte) error {
	for len(data) > 0 {
		i := strings.IndexByte(string(data), '\n')
		if i < 0 {
			p := append(w.part[k], data...)
			if len(p) > maxPartial {
				delete(w.part, k)
				return w.flushLine(k, append(p, '\n'))
			}
			w.part[k] = p
			return nil
		}
		line := append(w.part[k], data[:i+1]...)
		delete(w.part, k)
		if err := w.flushLine(k, line); err != nil {
			return err
		}
		data = data[i+1:]
	}
	return nil
}

func (w *lineWriter) flushLine(k procStream, line []byte) error {
	if p := w.prefix(k); p != "" {
		line = append([]byte(p), line...)
	}
	return w.emit(k.stream, line)
}

// flush ends the lines that never ended.
func (w *lineWriter) flush() error {
	for k, p := range w.part {
		delete(w.part, k)
		if err := w.flushLine(k, append(p, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// progressLine is the line of a job with several tasks.
func progressLine(label string, done, failed, running, total int, began time.Time) string {
	s := fmt.Sprintf("%s ▕%s▏ %d/%d", label, bar(done+failed, total, 24), done+failed, total)
	if running > 0 {
		s += fmt.Sprintf("  %d running", running)
	}
	if failed > 0 {
		s += fmt.Sprintf("  %d failed", failed)
	}
	el := time.Since(began)
	s += "  " + shortDuration(el)
	if ended := done + failed; ended > 0 && ended < total && el > time.Second {
		s += "  left " + shortDuration(el*time.Duration(total-ended)/time.Duration(ended))
	}
	return s
}
