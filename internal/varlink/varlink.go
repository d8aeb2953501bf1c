// Package varlink calls methods of services that listen at Unix sockets, as https://varlink.org/Method-Call has it.
package varlink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// maxReply bounds what a service may answer.
const maxReply = 1 << 20

// Error is what a service refuses a call with.
type Error struct {
	Name string // such as io.systemd.Machine.NoSuchMachine
}

func (e *Error) Error() string { return e.Name }

// Call calls a method, INTERFACE.METHOD, of the service at the socket of this path, with parameters as JSON has them, and puts those of the one reply into
// reply, unless that is nil. The context bounds it. An error is an [*Error] where the service answered with one.
func Call(ctx context.Context, socket, method string, parameters, reply any) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	answer, err := call(conn, method, parameters)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s does not answer: %w", socket, ctx.Err())
	case err != nil:
		return fmt.Errorf("%s: %w", socket, err)
	case answer.Error != "":
		return &Error{answer.Error}
	}
	if reply == nil || len(answer.Parameters) == 0 {
		return nil
	}
	return json.Unmarshal(answer.Parameters, reply)
}

type answer struct {
	Error      string          `json:"error"`
	Parameters json.RawMessage `json:"parameters"`
}

func call(conn io.ReadWriter, method string, parameters any) (a answer, err error) {
	message, err := json.Marshal(map[string]any{"method": method, "parameters": parameters})
	if err != nil {
		return a, err
	}
	if _, err := conn.Write(append(message, 0)); err != nil {
		return a, err
	}
	text, err := bufio.NewReader(io.LimitReader(conn, maxReply)).ReadBytes(0)
	if errors.Is(err, io.EOF) {
		return a, errors.New("the reply has no end")
	}
	if err == nil {
		err = json.Unmarshal(bytes.TrimSuffix(text, []byte{0}), &a)
	}
	return a, err
}
