package fetch

import (
	"fmt"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"nspawnd/image"
)

// serve has the registry answer requests whose path ends with a name by these documents.
func (l *lab) serve(documents map[string]rawTaggable) {
	honest := l.handler
	l.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		document, ok := documents[path.Base(r.URL.Path)]
		if !ok {
			honest.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", string(document.mediaType))
		w.Header().Set("Docker-Content-Digest", string(image.DigestOf([]byte(document.manifest))))
		fmt.Fprint(w, document.manifest)
	})
}

// manyLabels is a configuration of labels that have a name each.
func manyLabels() string {
	var labels []string
	for i := range 20_000 {
		labels = append(labels, fmt.Sprintf(`"%06d":""`, i))
	}
	return `{"rootfs":{"type":"layers"},"config":{"Labels":{` + strings.Join(labels, ",") + "}}}"
}

// Documents that are as deep or as full as 4 MiB can be are refused, or taken if they are right, soon and in few words.
func TestDeepAndHuge(t *testing.T) {
	needMounts(t)
	const (
		limit   = image.MaxBlob
		deep    = 100_000
		soon    = time.Minute // what isn't linear in such a document's size takes hours
		verbose = 4000        // bytes of an error
	)
	fill := func(head, piece, tail string) string { // up to the limit
		return head + strings.TrimSuffix(strings.Repeat(piece, (limit-len(head)-len(tail))/len(piece)), ",") + tail
	}
	nested := func(open, inner, end string) string {
		return strings.Repeat(open, deep) + inner + strings.Repeat(end, deep)
	}
	zero := "sha256:" + strings.Repeat("0", 64)
	descriptor := func(mediaType types.MediaType) string {
		return fmt.Sprintf(`{"mediaType":%q,"size":1,"digest":%q}`, mediaType, zero)
	}
	manifest := func(rest string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,%s`, types.OCIManifestSchema1, descriptor(types.OCIConfigJSON), rest)
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,`, types.OCIImageIndex)
	manifests := map[string]rawTaggable{
		"deep":         {nested("[", "", "]"), types.OCIManifestSchema1},
		"deepobjects":  {nested(`{"a":`, "1", "}"), types.OCIManifestSchema1},
		"deepunknown":  {manifest(`"x":` + nested("[", "", "]") + `,"layers":[]}`), types.OCIManifestSchema1},
		"deepopen":     {strings.Repeat("[", limit), types.OCIManifestSchema1},
		"deepdocker":   {nested(`{"a":`, "1", "}"), types.DockerManifestSchema2},
		"deepindex":    {index + `"manifests":` + nested("[", "", "]") + "}", types.OCIImageIndex},
		"deeplist":     {nested(`{"manifests":[`, "", "]}"), types.DockerManifestList},
		"deepguess":    {nested(`{"config":`, "{}", "}"), "application/json"},
		"manylayers":   {fill(manifest(`"layers":[`), descriptor(types.OCILayer)+",", "]}"), types.OCIManifestSchema1},
		"emptylayers":  {fill(manifest(`"layers":[`), "{},", "]}"), types.OCIManifestSchema1},
		"manyimages":   {fill(index+`"manifests":[`, descriptor(types.OCIManifestSchema1)+",", "]}"), types.OCIImageIndex},
		"emptyimages":  {fill(index+`"manifests":[`, "{},", "]}"), types.OCIImageIndex},
		"foreign":      {fill(index+`"manifests":[`, `{"platform":{"architecture":"x","os":"y"},"digest":"`+zero+`"},`, "]}"), types.OCIImageIndex},
		"annotations":  {fill(manifest(`"layers":[],"annotations":{`), `"a":"",`, "}}"), types.OCIManifestSchema1},
		"longword":     {fill(`{"schemaVersion":2,"mediaType":"`, `\u001b[31m`, `"}`), types.OCIManifestSchema1},
		"longtype":     {fill(manifest(`"layers":[{"size":1,"digest":"`+zero+`","mediaType":"`), "long", `"}]}`), types.OCIManifestSchema1},
		"longdigest":   {fill(manifest(`"layers":[{"mediaType":"`+string(types.OCILayer)+`","size":1,"digest":"sha256:`), "0", `"}]}`), types.OCIManifestSchema1},
		"larger":       {strings.Repeat(" ", limit) + "{}", types.OCIManifestSchema1},
		"hugenumber":   {manifest(`"layers":[{"mediaType":"` + string(types.OCILayer) + `","digest":"` + zero + `","size":1e999999999}]}`), types.OCIManifestSchema1},
		"longnumber":   {fill(manifest(`"layers":[{"mediaType":"`+string(types.OCILayer)+`","digest":"`+zero+`","size":1`), "0", "}]}"), types.OCIManifestSchema1},
		"negativesize": {manifest(`"layers":[{"mediaType":"` + string(types.OCILayer) + `","digest":"` + zero + `","size":-1}]}`), types.OCIManifestSchema1},
	}
	l := newLab(t)
	check := func(name string, refused bool) {
		t.Helper()
		start := time.Now()
		_, err := l.pullWith(name+":"+name, l.insecure())
		took := time.Since(start)
		t.Logf("%s: %.200v, %v", name, err, took)
		switch {
		case refused != (err != nil):
			t.Errorf("%s: %v", name, err)
		case err != nil && (len(err.Error()) > verbose || strings.ContainsAny(err.Error(), "\n\x1b")):
			t.Errorf("%s: an error of %d bytes: %.500v", name, len(err.Error()), err)
		case took > soon:
			t.Errorf("%s: took %v", name, took)
		}
	}
	for name, config := range map[string]string{
		"deepconfig":  `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers"},"config":{"Healthcheck":` + nested("[", "", "]") + `}}`,
		"deeprootfs":  nested(`{"rootfs":`, "1", "}"),
		"manydiffids": fill(`{"rootfs":{"type":"layers","diff_ids":[`, `"`+zero+`",`, "]}}"),
		"longrootfs":  fill(`{"rootfs":{"type":"`, `x`, `"}}`),
	} {
		l.push(name+":"+name, customImage(t, types.OCILayer, []byte(config)))
		check(name, true)
	}
	for name, config := range map[string]string{
		"manyvariables": fill(`{"rootfs":{"type":"layers"},"config":{"Env":[`, `"",`, "]}}"),
		"manylabels":    manyLabels(),
		"muchhistory":   fill(`{"rootfs":{"type":"layers"},"history":[`, `{},`, "]}"),
	} {
		l.push(name+":"+name, customImage(t, types.OCILayer, []byte(config)))
		check(name, false)
	}
	l.serve(manifests)
	for name := range manifests {
		check(name, true)
	}
}

// A layer is fetched from its registry, wherever else its descriptor says that it is. (podman fetches it from there.)
func TestURLsOfLayers(t *testing.T) {
	needMounts(t)
	l := newLab(t)
	var asked []string
	elsewhere := newLab(t)
	elsewhere.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		http.NotFound(w, r)
	})
	tar := layerTar("file", "content")
	img := rawImage(t, types.OCILayer, []string{string(image.DigestOf(tar))}, gzipped(tar)).(*fixedImage)
	for i := range img.manifest.Layers {
		img.manifest.Layers[i].URLs = []string{"https://" + elsewhere.host + "/layer", "file:///etc/passwd"}
	}
	l.push("demo/x:1", img)
	got, err := l.pullWith("demo/x:1", l.insecure())
	if err != nil || !slices.Equal(got.Layers, []image.Digest{image.DigestOf(tar)}) || !l.asked("/blobs/"+hashOf(gzipped(tar)).String()) {
		t.Errorf("%v, %v, requests %s", got, err, l.requests)
	}
	if asked != nil {
		t.Errorf("asked elsewhere for %s", asked)
	}
}

// Layers that are small when they are fetched end at a limit, and leave nothing.
func TestBomb(t *testing.T) {
	needMounts(t)
	defer func(before int64) { maxImageSize = before }(maxImageSize)
	maxImageSize = 32 << 20
	l := newLab(t)
	zeros := func(file string, n int) []byte { return layerTar(file, string(make([]byte, n))) }
	for _, backend := range []string{"erofs", "dirs"} {
		if err := l.store.SetBackend(backend); err != nil {
			t.Fatal(err)
		}
		l.push("one:1", makeImage(t, zeros("file", 33<<20)))
		l.wantError("one:1", l.insecure(), "image larger than")
		l.push("two:1", makeImage(t, zeros("a", 20<<20), zeros("b", 20<<20)))
		l.wantError("two:1", l.insecure(), "image larger than")
		l.push("fits:1", makeImage(t, zeros(backend, 31<<20)))
		if _, err := l.pullWith("fits:1", l.insecure()); err != nil {
			t.Error(err)
		}
		os.RemoveAll(l.storeDir)
	}
}
