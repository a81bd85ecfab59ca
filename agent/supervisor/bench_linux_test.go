package supervisor_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"

	"launcher/agent/supervisor"
	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

func benchSpawn(b *testing.B, flight int) {
	c := supervisortest.Start(b).Connect(b)
	ctx := context.Background()
	var mu sync.Mutex
	ends := map[wire.Proc]chan struct{}{}
	go func() {
		for x := range c.Exits() {
			mu.Lock()
			close(ends[x.Proc])
			mu.Unlock()
		}
	}()
	next := make(chan int)
	var wg sync.WaitGroup
	for range flight {
		wg.Go(func() {
			for i := range next {
				or, ow, _ := os.Pipe()
				er, ew, _ := os.Pipe()
				end := make(chan struct{})
				mu.Lock()
				ends[name(i)] = end
				mu.Unlock()
				_, err := c.Spawn(ctx, supervisor.Order{Proc: name(i), Argv: []string{"true"}, Env: basicEnv, Dir: "/",
					Files: []*os.File{nil, ow, ew}, Keep: map[string]*os.File{"o" + name(i).String(): or, "e" + name(i).String(): er}})
				if err != nil {
					b.Error(err)
					return
				}
				ow.Close()
				ew.Close()
				io.Copy(io.Discard, or)
				io.Copy(io.Discard, er)
				<-end
				or.Close()
				er.Close()
				c.Release(name(i))
			}
		})
	}
	b.ResetTimer()
	for i := range b.N {
		next <- i
	}
	close(next)
	wg.Wait()
}

// BenchmarkExecLoop is the yardstick: os/exec with the same pipes, one after the other.
func BenchmarkExecLoop(b *testing.B) {
	for b.Loop() {
		cmd := exec.Command("true")
		cmd.Env = basicEnv
		cmd.Dir = "/"
		o, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		e, err := cmd.StderrPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, o)
		io.Copy(io.Discard, e)
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}
