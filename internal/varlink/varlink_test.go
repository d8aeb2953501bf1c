package varlink

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve answers one call with these bytes, and gives what was asked.
func serve(t *testing.T, answer string) (socket string, asked <-chan string) {
	socket = filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	calls := make(chan string, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		call, _ := bufio.NewReader(conn).ReadString(0)
		calls <- call
		io.WriteString(conn, answer)
		if answer != "" {
			conn.Close()
		}
	}()
	return socket, calls
}

func TestCall(t *testing.T) {
	socket, asked := serve(t, `{"parameters":{"name":"x"}}`+"\x00")
	var reply struct{ Name string }
	err := Call(t.Context(), socket, "a.b.C", map[string]any{"n": 1}, &reply)
	if call := <-asked; err != nil || reply.Name != "x" || call != `{"method":"a.b.C","parameters":{"n":1}}`+"\x00" {
		t.Error(err, reply, call)
	}
	socket, _ = serve(t, `{"error":"a.b.Refused","parameters":{}}`+"\x00")
	var refused *Error
	if err := Call(t.Context(), socket, "a.b.C", nil, &reply); !errors.As(err, &refused) || refused.Name != "a.b.Refused" {
		t.Error(err)
	}
	if err := Call(t.Context(), filepath.Join(t.TempDir(), "none"), "a.b.C", nil, nil); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
	for what, answer := range map[string]string{"no end": `{"parameters":{}}`, "no JSON": "}\x00", "too much": `{"x":"` + strings.Repeat("y", maxReply) + "\"}\x00"} {
		socket, _ = serve(t, answer)
		if err := Call(t.Context(), socket, "a.b.C", nil, &reply); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	socket, _ = serve(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Call(ctx, socket, "a.b.C", nil, &reply); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
