package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"launcher/wire"
)

// table prints rows in columns two spaces apart; the first row is the heading. The last
// column is not padded, so that long lines can be cut and pasted.
func (a *app) table(rows [][]string) { a.tableTo(a.out, rows) }

func (a *app) tableTo(w io.Writer, rows [][]string) {
	var width []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		for i, c := range r {
			line.WriteString(c)
			if i < len(r)-1 {
				line.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+2))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	fmt.Fprint(w, b.String())
}

// shortDuration is a duration as people read it: 0.32s, 4.1s, 3m05s, 2h10m, 3d4h.
func shortDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// since is the age of a wire time, "" for zero.
func since(ns int64) string {
	if ns == 0 {
		return ""
	}
	return shortDuration(time.Since(time.Unix(0, ns)))
}

// took is how long something ran, or has been running.
func took(start, end int64) string {
	switch {
	case start == 0:
		return ""
	case end == 0:
		return since(start)
	}
	return shortDuration(time.Duration(end - start))
}

// stamp is a wire time for --json, nil when there is none.
func stamp(ns int64) *string {
	if ns == 0 {
		return nil
	}
	return new(time.Unix(0, ns).UTC().Format(time.RFC3339Nano))
}

func units(v int64) string { return strconv.FormatFloat(float64(v)/wire.Unit, 'f', -1, 64) }

// share is "used/total" of a countable resource.
func share(free, total int64) string { return units(total-free) + "/" + units(total) }

// number is a metric in few digits.
func number(f float64) string {
	switch {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return strconv.FormatFloat(f, 'g', -1, 64)
	case f == math.Trunc(f) && math.Abs(f) < 1e9:
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return strconv.FormatFloat(f, 'g', 6, 64)
}

// shellJoin is a command as one could type it.
func shellJoin(argv ...string) string {
	out := make([]string, len(argv))
	for i, s := range argv {
		if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%{}") == "" {
			out[i] = s
			continue
		}
		out[i] = "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return strings.Join(out, " ")
}

// cut shortens text for a column.
func cut(s string, n int) string {
	s = strings.ReplaceAll(s, "\n", " ")
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
