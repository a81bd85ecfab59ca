package configs

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"launcher/internal/errs"
)

// Fault is one thing that is wrong with a file.
type Fault struct {
	File    string // as the user named it
	Line    int    // from 1; 0 = the file as a whole
	Key     string // dotted, for example pool.min; "" = no key in particular
	Msg     string // what is wrong; what is allowed
	Unbuilt bool   // right, but of a part that this version does not have
}

// String gives FILE:LINE: KEY: MSG.
func (f Fault) String() string {
	s := f.File
	if f.Line > 0 {
		s += fmt.Sprintf(":%d", f.Line)
	}
	if f.Key != "" {
		s += ": " + f.Key
	}
	return s + ": " + f.Msg
}

// Faults is every fault of a file, in the order of its lines. Callers that print
// find it with errors.As and give each its own line.
type Faults []Fault

// Error gives one line per fault.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, x := range f {
		lines[i] = x.String()
	}
	return strings.Join(lines, "\n")
}

// maxFaults is how many faults of a file are told; nobody reads more at once.
const maxFaults = 100

// asError makes the one error of a file: Unbuilt when nothing else is wrong with it.
func (f Faults) asError() error {
	if len(f) == 0 {
		return nil
	}
	slices.SortStableFunc(f, func(a, b Fault) int { return a.Line - b.Line })
	kind := errs.Unbuilt
	if slices.ContainsFunc(f, func(x Fault) bool { return !x.Unbuilt }) {
		kind = errs.Invalid
	}
	if more := len(f) - maxFaults; more > 0 {
		f = append(f[:maxFaults:maxFaults], Fault{File: f[0].File, Msg: fmt.Sprintf("and %d more faults", more)})
	}
	return &errs.Error{Kind: kind, Err: f}
}

// didYouMean names the nearest of the allowed words, or all of them when there are few.
func didYouMean(got string, allowed []string) string {
	best, score := "", 1+max(1, len(got)/3)
	for _, a := range allowed {
		if d := distance(strings.ToLower(got), a); d < score {
			best, score = a, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	return "allowed are " + strings.Join(slices.Sorted(slices.Values(allowed)), ", ")
}

// distance is the number of insertions, deletions, replacements and swaps of neighbours
// that turn a into b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// unreadable is the error for a file that cannot be read at all.
func unreadable(path string, err error, what string) error {
	kind := errs.Invalid
	switch {
	case isNotExist(err):
		kind = errs.NotFound
	case isPermission(err):
		kind = errs.Permission
	}
	e := &errs.Error{Kind: kind, Msg: fmt.Sprintf("cannot read %s %s", what, path), Err: trimPath(err)}
	if kind == errs.NotFound {
		if near, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*"+filepath.Ext(path))); len(near) > 0 && filepath.Ext(path) != "" {
			return e.Hint("there are: %s", strings.Join(near[:min(len(near), 5)], ", "))
		}
		switch filepath.Ext(path) {
		case ".toml", ".yaml", ".yml":
			return e.Hint("check the path; samples are in configs/")
		}
		return e.Hint("check the path")
	}
	return e
}
