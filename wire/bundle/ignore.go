package bundle

import (
	"path"
	"strings"
)

// rule is one line of an ignore file.
type rule struct {
	base     string // directory of the file, from the root; "" = the root
	parts    []string
	anchored bool // from base on; else a name at any depth
	dirOnly  bool
	again    bool // "!": not ignored after all
}

// builtin is what no program needs elsewhere. TokenPrefix is ours.
var builtin = rulesOf("", ".git\n__pycache__\n"+TokenPrefix+"*\n")

// rulesOf reads an ignore file, in the language of .gitignore.
func rulesOf(base, text string) (out []rule) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		r := rule{base: base}
		if line, r.again = strings.CutPrefix(line, "!"); line == "" {
			continue
		}
		line, r.dirOnly = strings.CutSuffix(line, "/")
		r.anchored = strings.Contains(line, "/")
		r.parts = strings.Split(strings.TrimPrefix(strings.TrimPrefix(line, `\`), "/"), "/")
		out = append(out, r)
	}
	return out
}

// ignored says whether a path, from the root, is left out: the last rule that fits it decides.
func ignored(rules []rule, rel string, dir bool) bool {
	for i := len(rules) - 1; i >= 0; i-- {
		r := rules[i]
		below, ok := rel, true
		if r.base != "" {
			below, ok = strings.CutPrefix(rel, r.base+"/")
		}
		if !ok || r.dirOnly && !dir {
			continue
		}
		if r.anchored && fits(r.parts, strings.Split(below, "/")) || !r.anchored && one(r.parts[0], path.Base(below)) {
			return !r.again
		}
	}
	return false
}

func one(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// fits matches whole paths; ** stands for any number of their parts.
func fits(parts, names []string) bool {
	if len(parts) == 0 {
		return len(names) == 0
	}
	if parts[0] == "**" {
		if len(parts) == 1 {
			return len(names) > 0
		}
		for i := range names {
			if fits(parts[1:], names[i:]) {
				return true
			}
		}
		return false
	}
	return len(names) > 0 && one(parts[0], names[0]) && fits(parts[1:], names[1:])
}
