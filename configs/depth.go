package configs

import (
	"strings"
	"unicode/utf8"
)

// maxDepth is how deep lists, tables and dotted keys may be nested. The libraries take a
// time that grows with the square of it, or worse, so it is looked at before they are asked.
const maxDepth = 64

// tooDeep is the first line of a TOML or YAML text that is nested deeper than maxDepth,
// 0 when none is. It counts brackets, and where keys are dotted the dots of one, outside
// strings and comments; what is not valid may be counted wrongly, and is refused anyway.
func tooDeep(text string, dotted bool) int {
	line, depth, dots := 1, 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '\n':
			line, dots = line+1, 0
		case ',', '=':
			dots = 0
		case '.':
			if dotted {
				dots++
			}
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(depth-1, 0)
		case '#':
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case '"', '\'':
			n := stringEnd(text[i:], c)
			line += strings.Count(text[i:i+n], "\n")
			i += n - 1
		}
		if depth > maxDepth || dots > maxDepth {
			return line
		}
	}
	return 0
}

// stringEnd is the length of the string that s begins with. One line, but for TOML's
// triple quotes; an apostrophe in plain text ends with its line.
func stringEnd(s string, q byte) int {
	quote := strings.Repeat(string(q), 3)
	triple := strings.HasPrefix(s, quote)
	if !triple {
		quote = quote[:1]
	}
	for i := len(quote); i < len(s); i++ {
		switch {
		case s[i] == '\\' && q == '"':
			i++
		case s[i] == '\n' && !triple:
			return i
		case strings.HasPrefix(s[i:], quote):
			return i + len(quote)
		}
	}
	return len(s)
}

// invalidUTF8 is where text stops being UTF-8, -1 when it never does.
func invalidUTF8(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}
