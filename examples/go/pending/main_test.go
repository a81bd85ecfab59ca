package main

import (
	"fmt"
	"testing"

	"launcher/examples/go/gotest"
)

func TestMain(m *testing.M) { gotest.Main(m, main) }

func TestPending(t *testing.T) {
	sum := 0
	for i := range 400 {
		for n := i + 1; n != 1 && (i+1)%100 != 0; sum++ {
			if n%2 == 0 {
				n /= 2
			} else {
				n = 3*n + 1
			}
		}
	}
	want := fmt.Sprintf("396 inputs done, 4 skipped, %d steps in all, at most 16 pending\n", sum)
	if out := gotest.Run(t, "-inputs", "400", "-pending", "16"); out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}
