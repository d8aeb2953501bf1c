package units

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMounts(t *testing.T) {
	yes, no := true, false
	volume := func(s string) (Mount, error) { return ParseVolume(s) }
	for _, c := range []struct {
		parse func(string) (Mount, error)
		in    string
		want  *Mount // nil: an error
	}{
		{volume, "/a:/b", &Mount{Type: "bind", Source: "/a", Target: "/b"}},
		{volume, "./a:/b/:ro,z", &Mount{Type: "bind", Source: "./a", Target: "/b", ReadOnly: true}},
		{volume, "/a:/b:rw,bind,rslave,Z,U", &Mount{Type: "bind", Source: "/a", Target: "/b", NoRecursive: true, Propagation: "slave", Chown: true}},
		{volume, "data:/b:noexec,suid,nocopy", &Mount{Type: "volume", Source: "data", Target: "/b", Exec: &no, SUID: &yes, NoCopy: true}},
		{volume, "/b", &Mount{Type: "volume", Target: "/b"}},
		{volume, "/a:/b:O", &Mount{Type: "bind", Source: "/a", Target: "/b", Overlay: true}},
		{volume, "/a:b", nil},
		{volume, "/a:/", nil},
		{volume, "/a:/proc", nil},
		{volume, "/a:/b:bogus", nil},
		{volume, "/a:/b:ro,rw", nil},
		{volume, "/a:/b:private,rslave", nil},
		{volume, "/a:/b:rshared", nil},
		{volume, "/a:/b:unbindable", nil},
		{volume, "/a:/b:idmap=uids=0-1-1", nil},
		{volume, "/a:/b:size=1m", nil},
		{volume, "/a:/b:ro:extra", nil},
		{volume, "-x:/b", nil},
		{volume, "a b:/b", nil},
		{volume, ":/b", nil},
		{volume, "", nil},
		{ParseTmpfs, "/t", &Mount{Type: "tmpfs", Target: "/t"}},
		{ParseTmpfs, "/t:size=50%,mode=0700,noexec,ro,notmpcopyup", &Mount{Type: "tmpfs", Target: "/t", Exec: &no, ReadOnly: true, NoCopy: true, Options: []string{"size=50%", "mode=0700"}}},
		{ParseTmpfs, "/t:size=1%m", nil},
		{ParseTmpfs, "/t:mode=9", nil},
		{ParseTmpfs, "/t:lowerdir=/", nil},
		{ParseMount, `type=bind,"src=/a,b:c",dst=/b,readonly,bind-propagation=rslave`, &Mount{Type: "bind", Source: "/a,b:c", Target: "/b", ReadOnly: true, Propagation: "slave"}},
		{ParseMount, "type=bind,source=/a,target=/b,ro=false,consistency=cached", &Mount{Type: "bind", Source: "/a", Target: "/b"}},
		{ParseMount, "src=v,dst=/b,volume-nocopy,subpath=x/y", &Mount{Type: "volume", Source: "v", Target: "/b", NoCopy: true, Subpath: "x/y"}},
		{ParseMount, "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770", &Mount{Type: "tmpfs", Target: "/t", Options: []string{"size=1m", "mode=1770"}}},
		{ParseMount, "type=image,src=demo/tiny,dst=/t", &Mount{Type: "image", Source: "demo/tiny", Target: "/t", ReadOnly: true}},
		{ParseMount, "type=image,src=demo/tiny,dst=/t,rw=true", &Mount{Type: "image", Source: "demo/tiny", Target: "/t"}},
		{ParseMount, "type=devpts,dst=/t,mode=620,max=4", &Mount{Type: "devpts", Target: "/t", Options: []string{"mode=620", "max=4"}}},
		{ParseMount, "type=bind,dst=/b", nil},
		{ParseMount, "type=tmpfs,src=x,dst=/b", nil},
		{ParseMount, "type=glob,src=x,dst=/b", nil},
		{ParseMount, "type=bind,src=/a,dst=/b,ro=maybe", nil},
		{ParseMount, "type=bind,src=/a", nil},
		{ParseMount, `type=bind,"src`, nil},
		{ParseMount, "", nil},
	} {
		got, err := c.parse(c.in)
		if (err == nil) != (c.want != nil) {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		} else if c.want != nil {
			if diff := cmp.Diff(*c.want, got); diff != "" {
				t.Errorf("%q: %s", c.in, diff)
			}
		}
	}
}

func TestPlaceMounts(t *testing.T) {
	for _, c := range []struct {
		volumes, tmpfs []string
		prepared       string // one letter a mount: y, n; "": an error
	}{
		{[]string{"/a:/b"}, []string{"/t", "/filled", "/run", "/dev/shm"}, "ynyyn"},
		{[]string{"/a:/dev/log:ro", "/sys:/sys/x", "/a:/devel"}, nil, "nny"},
		{[]string{"v:/t/v"}, []string{"/t", "/tt"}, "yyn"},
		{[]string{"/a:/dev/v:U"}, []string{"/dev/t:U"}, ""},
		{[]string{"v:/dev/v"}, nil, ""},
		{[]string{"/a:/dev/v:noexec"}, nil, ""},
	} {
		machine := Machine{Manager: 262}
		for _, v := range c.volumes {
			m, err := ParseVolume(v)
			if err != nil {
				t.Fatal(err)
			}
			machine.Mounts = append(machine.Mounts, m)
		}
		for _, v := range c.tmpfs {
			m, err := ParseTmpfs(v)
			if err != nil {
				t.Fatal(err)
			}
			machine.Mounts = append(machine.Mounts, m)
		}
		err := machine.PlaceMounts(func(m Mount) bool { return m.Target == "/filled" })
		got := ""
		for _, m := range machine.Mounts {
			got += map[bool]string{true: "y", false: "n"}[m.Prepared]
		}
		if (err != nil) != (c.prepared == "") || err == nil && got != c.prepared {
			t.Errorf("%v %v: %s, %v", c.volumes, c.tmpfs, got, err)
		}
	}
}

func TestParseDevices(t *testing.T) {
	for in, want := range map[string]string{
		"/dev/fuse": "/dev/fuse /dev/fuse rwm", "/dev/fuse:/dev/x": "/dev/fuse /dev/x rwm", "/dev/fuse:r": "/dev/fuse /dev/fuse r",
		"/dev/fuse:/dev/x:rw": "/dev/fuse /dev/x rw", "fuse": "", "vendor.com/gpu=all": "", "/dev/a:/b:rwx": "", "/dev/a:b:r": "", "/a:/b:r:w": "", "": "",
	} {
		host, target, access, err := ParseDevice(in)
		if got := host + " " + target + " " + access; (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for in, want := range map[string][]Pair{
		"c 10:229 rw": {{"/dev/char/10:229", "rw"}}, "b 7:* rwm": {{"block-7", "rwm"}}, "c *:* m": {{"char-*", "m"}},
		"a *:* rwm": {{"char-*", "rwm"}, {"block-*", "rwm"}}, "c *:1 r": nil, "c 1 r": nil, "x 1:1 r": nil, "c 1:1": nil, "c-1": nil, "c 1:1 q": nil,
	} {
		got, err := ParseDeviceRule(in)
		if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (want != nil) {
			t.Errorf("%q: %s, %v", in, diff, err)
		}
	}
}
