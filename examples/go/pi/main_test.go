package main

import (
	"strings"
	"testing"

	"launcher/examples/go/gotest"
)

func TestMain(m *testing.M) { gotest.Main(m, main) }

func TestPi(t *testing.T) {
	out := gotest.Run(t, "-tasks", "8", "-darts", "200000")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "8 of 8 tasks: pi is about 3.14") {
		t.Errorf("%q", lines)
	}
}
