package configs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// parseTOML reads a TOML file into a tree. The library decodes and checks; it does not
// tell where a value stands, so scan finds the lines of a text known to be valid.
func parseTOML(file string, text []byte) (*node, Faults) {
	if line := tooDeep(string(text), true); line > 0 {
		return nil, Faults{{File: file, Line: line, Msg: "not TOML that can be read: nested too deep"}}
	}
	m := map[string]any{}
	if _, err := toml.Decode(string(text), &m); err != nil {
		line, msg := 1, err.Error()
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			line, msg = pe.Position.Line, pe.Message
			if msg == "" {
				msg = strings.TrimPrefix(pe.Error(), "toml: ")
			}
		}
		return nil, Faults{{File: file, Line: line, Msg: "not TOML: " + msg}}
	}
	s := &scanner{src: string(text), line: 1, at: map[string]place{}, tables: map[string]int{}}
	s.document()
	return s.build("", m), nil
}

// place is where a path was first seen: its line, and its turn, which orders keys.
type place struct{ line, turn int }

// Paths in scanner.at are keys joined by sep; an element of a list is idx + number.
const (
	sep = "\x00"
	idx = "\x01"
)

type scanner struct {
	src    string
	i      int
	line   int
	at     map[string]place
	tables map[string]int // elements so far of each array of tables
	depth  int
}

// build joins the decoded values with their places.
func (s *scanner) build(path string, v any) *node {
	n := &node{line: s.at[path].line}
	list := func(k int, elem func(i int) any) {
		out := make([]*node, k)
		for i := range out {
			p := fmt.Sprint(path, idx, i)
			if _, ok := s.at[p]; !ok {
				s.at[p] = s.at[path]
			}
			out[i] = s.build(p, elem(i))
		}
		n.val = out
	}
	switch v := v.(type) {
	case map[string]any:
		o := newObject()
		keys := slices.Sorted(maps.Keys(v))
		slices.SortStableFunc(keys, func(a, b string) int { return s.at[path+sep+a].turn - s.at[path+sep+b].turn })
		for _, k := range keys {
			p := path + sep + k
			if _, ok := s.at[p]; !ok {
				s.at[p] = place{line: max(n.line, 1)}
			}
			o.set(k, s.build(p, v[k]))
		}
		n.val = o
	case []map[string]any:
		list(len(v), func(i int) any { return v[i] })
	case []any:
		list(len(v), func(i int) any { return v[i] })
	case time.Time:
		n.val = stamp(v.Format(stampLayout(v)))
	default:
		n.val = v
	}
	return n
}

// stampLayout is how a date or time stood in the file.
func stampLayout(v time.Time) string {
	switch v.Location().String() { // so the library calls what has no offset
	case "date-local":
		return time.DateOnly
	case "time-local":
		return time.TimeOnly
	case "datetime-local":
		return "2006-01-02T15:04:05"
	}
	return time.RFC3339
}

func (s *scanner) mark(path string) {
	if _, ok := s.at[path]; !ok {
		s.at[path] = place{s.line, len(s.at) + 1}
	}
}

func (s *scanner) eof() bool { return s.i >= len(s.src) }

func (s *scanner) has(p string) bool { return strings.HasPrefix(s.src[s.i:], p) }

// next moves on by n bytes and counts lines.
func (s *scanner) next(n int) {
	for ; n > 0 && !s.eof(); n-- {
		if s.src[s.i] == '\n' {
			s.line++
		}
		s.i++
	}
}

// blank skips white space, line ends and comments.
func (s *scanner) blank() {
	for !s.eof() {
		switch s.src[s.i] {
		case ' ', '\t', '\r', '\n':
			s.next(1)
		case '#':
			for !s.eof() && s.src[s.i] != '\n' {
				s.next(1)
			}
		default:
			return
		}
	}
}

func (s *scanner) document() {
	if strings.HasPrefix(s.src, "\ufeff") {
		s.i = len("\ufeff")
	}
	s.at[""] = place{line: 1}
	table := ""
	for s.blank(); !s.eof(); s.blank() {
		start := s.i
		if s.src[s.i] == '[' {
			table = s.header()
		} else {
			s.keyValue(table)
		}
		if s.i == start { // cannot happen in valid TOML; never loop
			s.next(1)
		}
	}
}

// header reads [a.b] or [[a.b]] and gives the path that what follows belongs to.
func (s *scanner) header() string {
	array := s.has("[[")
	s.next(1)
	if array {
		s.next(1)
	}
	keys := s.key()
	for !s.eof() && (s.src[s.i] == ']' || s.src[s.i] == ' ' || s.src[s.i] == '\t') {
		s.next(1)
	}
	path := ""
	for i, k := range keys {
		path += sep + k
		s.mark(path)
		if n := s.tables[path]; n > 0 && (i < len(keys)-1 || !array) {
			path += fmt.Sprint(idx, n-1)
		}
	}
	if array {
		s.tables[path]++
		path += fmt.Sprint(idx, s.tables[path]-1)
		s.mark(path)
	} else {
		// [a.b] may come after [a.b.c]: the table's own line is that of its header.
		s.at[path] = place{s.line, s.at[path].turn}
	}
	return path
}

// key reads a dotted key up to '=' or ']'.
func (s *scanner) key() []string {
	var keys []string
	for !s.eof() {
		switch c := s.src[s.i]; c {
		case ' ', '\t', '.':
			s.next(1)
		case '"', '\'':
			keys = append(keys, s.quoted(c))
		case '=', ']', '\n':
			return keys
		default:
			start := s.i
			for !s.eof() && !strings.ContainsRune(" \t.=]\n\"'", rune(s.src[s.i])) {
				s.next(1)
			}
			keys = append(keys, s.src[start:s.i])
		}
	}
	return keys
}

// quoted reads a one-line string; the library itself undoes the escapes.
func (s *scanner) quoted(q byte) string {
	start := s.i
	s.next(1)
	for !s.eof() && s.src[s.i] != q {
		if q == '"' && s.src[s.i] == '\\' {
			s.next(1)
		}
		s.next(1)
	}
	s.next(1)
	raw := s.src[start:s.i]
	var v struct{ K string }
	if _, err := toml.Decode("K = "+raw, &v); err != nil {
		return raw
	}
	return v.K
}

func (s *scanner) keyValue(table string) {
	path := table
	for _, k := range s.key() {
		path += sep + k
		s.mark(path)
	}
	if !s.eof() && s.src[s.i] == '=' {
		s.next(1)
	}
	for !s.eof() && (s.src[s.i] == ' ' || s.src[s.i] == '\t') {
		s.next(1)
	}
	s.value(path)
}

func (s *scanner) value(path string) {
	if s.eof() {
		return
	}
	s.depth++
	defer func() { s.depth-- }()
	switch c := s.src[s.i]; {
	case s.has(`"""`), s.has("'''"):
		s.multiline(c)
	case c == '"', c == '\'':
		s.quoted(c)
	case c == '[' && s.depth < 1000:
		s.next(1)
		for k := 0; ; k++ {
			s.separator()
			if s.eof() || s.src[s.i] == ']' {
				s.next(1)
				return
			}
			start, p := s.i, fmt.Sprint(path, idx, k)
			s.mark(p)
			if s.value(p); s.i == start {
				s.next(1)
			}
		}
	case c == '{' && s.depth < 1000:
		s.next(1)
		for {
			s.separator()
			if s.eof() || s.src[s.i] == '}' {
				s.next(1)
				return
			}
			start := s.i
			if s.keyValue(path); s.i == start {
				s.next(1)
			}
		}
	default:
		for !s.eof() && !strings.ContainsRune(",]}\n#", rune(s.src[s.i])) {
			s.next(1)
		}
	}
}

// separator skips blanks and commas between the elements of a list or inline table.
func (s *scanner) separator() {
	for s.blank(); !s.eof() && s.src[s.i] == ','; s.blank() {
		s.next(1)
	}
}

func (s *scanner) multiline(q byte) {
	end := strings.Repeat(string(q), 3)
	s.next(3)
	for !s.eof() && !s.has(end) {
		if q == '"' && s.src[s.i] == '\\' {
			s.next(1)
		}
		s.next(1)
	}
	s.next(3)
	for !s.eof() && s.src[s.i] == q { // up to two quotes may stand before the closing three
		s.next(1)
	}
}
