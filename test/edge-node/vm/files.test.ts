import { createHash } from 'node:crypto'
import { mkdir, open, readFile, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CHUNK_BYTES } from '../../../edge-node/disks/chunk-tree.ts'
import { createFileDigests } from '../../../edge-node/disks/digests.ts'
import { checkSpecFiles, sharedFolderId, specFileFacts } from '../../../edge-node/vm/files.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { testSite } from './echo-guest.ts'

const test = suite('edge-node/vm/files')

const withDisk = (file: string, format: string, mode = 'readonly') =>
  parseSpec(`name: a\nmemory: 64MiB\ndisks: [{file: ${file}, mode: ${mode}, format: ${format}}]`)

/** The root of a file by its name, as an agent that starts now finds it. */
async function rootOf(path: string, cache: string, digests = createFileDigests(cache)): Promise<string> {
  await using file = await open(path)
  return await digests.root(file.fd, 'f')
}

/** RFC 6962, section 2.1, by its definition. */
function treeHash(content: Uint8Array): string {
  const hash = (...parts: Uint8Array[]) => createHash('sha256').update(Buffer.concat(parts)).digest()
  const chunks: Uint8Array[] = []
  for (let at = 0; at < content.length; at += CHUNK_BYTES) chunks.push(content.subarray(at, at + CHUNK_BYTES))
  const of = (list: Uint8Array[]): Buffer => {
    if (list.length === 0) return hash()
    if (list.length === 1) return hash(Uint8Array.of(0), list[0]!)
    const half = 2 ** Math.floor(Math.log2(list.length - 1))
    return hash(Uint8Array.of(1), of(list.slice(0, half)), of(list.slice(half)))
  }
  return of(chunks).toString('hex')
}

test('roots are right, remembered, and made anew when the file changes', async () => {
  await using site = await testSite()
  const [path, cache] = [join(site.dir, 'f'), join(site.dir, 'cache.json')]
  await writeFile(path, 'one')
  assert.is(await rootOf(path, cache), treeHash(Buffer.from('one')))
  // A cache that lies, to see that it is used.
  await writeFile(cache, (await readFile(cache, 'utf8')).replace(treeHash(Buffer.from('one')), 'cafe'))
  assert.is(await rootOf(path, cache), 'cafe')
  const digests = createFileDigests(cache)
  await writeFile(path, 'two')
  assert.is(await rootOf(path, cache, digests), treeHash(Buffer.from('two')))
  await utimes(path, 1, 1)
  assert.is(await rootOf(path, cache, digests), treeHash(Buffer.from('two')))
  await writeFile(cache, 'damaged')
  assert.is(await rootOf(path, cache), treeHash(Buffer.from('two')))
})

test('the root is that of RFC 6962, whatever the size, and whether zeros are holes or written', async () => {
  await using site = await testSite()
  const cache = join(site.dir, 'cache.json')
  const places = [0, 3.5, 4, 40.1, 70, 90].map(chunk => Math.floor(chunk * CHUNK_BYTES))
  for (const [at, size] of [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 7 * CHUNK_BYTES, 100 * CHUNK_BYTES + 77].entries()) {
    const content = Buffer.alloc(size)
    for (const place of places) content.subarray(place, place + 99).fill(at + 1)
    const [written, holed] = [join(site.dir, `w${at}`), join(site.dir, `h${at}`)]
    await writeFile(written, content)
    await using file = await open(holed, 'w')
    await file.truncate(size)
    for (const place of places) await file.write(content.subarray(place, place + 99), 0, undefined, place)
    assert.is(await rootOf(written, cache), treeHash(content), `${size} bytes`)
    assert.is(await rootOf(holed, cache), treeHash(content), `${size} bytes with holes`)
  }
})

test('a sparse file of 300 GB is read as fast as its data', async () => {
  await using site = await testSite()
  const path = join(site.dir, 'large')
  await using file = await open(path, 'w')
  await file.truncate(300e9)
  await file.write(Buffer.from('data'), 0, 4, 200e9)
  const startMs = performance.now()
  const root = await rootOf(path, join(site.dir, 'cache.json'))
  assert.ok(performance.now() - startMs < 5_000)
  await file.write(Buffer.from('dato'), 0, 4, 200e9)
  assert.is.not(await rootOf(path, join(site.dir, 'cache.json')), root)
})

test('without a list of the holes they are read, and a reading ends at once when nobody waits any more', async () => {
  await using site = await testSite()
  const path = join(site.dir, 'large')
  const digests = createFileDigests(join(site.dir, 'cache.json'))
  await using written = await open(path, 'w')
  await written.truncate(300e9)
  await using file = await open(path)
  using _path = withoutPrograms()
  const [one, two] = [new AbortController(), new AbortController()]
  const progress: number[] = []
  const begun = Promise.withResolvers<void>()
  const onProgress = (doneBytes: number) => {
    if (progress.push(doneBytes) > 3) begun.resolve()
  }
  const waiting = [one, two].map(({ signal }) => digests.root(file.fd, 'large', { signal, onProgress }))
  for (const each of waiting) each.catch(() => {})
  await begun.promise
  const left = new Error('left')
  const startMs = performance.now()
  one.abort(left)
  assert.is(await waiting[0]!.catch(error => error), left, 'the other one goes on')
  two.abort(left)
  assert.is(await waiting[1]!.catch(error => error), left)
  await digests.close()
  assert.ok(performance.now() - startMs < 2_000, 'ended within two seconds')
  assert.ok(progress.every(done => done > 0 && done < 300e9))
})

/** No program is found until it is disposed. */
function withoutPrograms(): Disposable {
  const before = process.env['PATH']
  process.env['PATH'] = '/nowhere'
  const dispose = () => {
    process.env['PATH'] = before
  }
  return { [Symbol.dispose]: dispose }
}

test('a file that is written to while it is read has no root', async () => {
  await using site = await testSite()
  await using file = await open(join(site.dir, 'f'), 'w+')
  await file.truncate(64 * 1024 * 1024)
  const timer = setInterval(() => file.write('x', 5), 1)
  try {
    assert.is(await codeOf(() => createFileDigests(join(site.dir, 'cache.json')).root(file.fd, 'f')), 'PREFLIGHT_FILE_CHANGED')
  } finally {
    clearInterval(timer)
  }
})

test('what is no regular file has no facts', async () => {
  await using site = await testSite()
  await mkdir(join(site.imagesDir, 'folder'))
  const digests = createFileDigests(join(site.dir, 'cache.json'))
  for (const file of ['none', 'folder']) assert.equal(await specFileFacts(withDisk(file, 'raw'), site, digests), {})
})

test('the facts of a spec have a digest where the content must not change', async () => {
  await using site = await testSite()
  await writeFile(join(site.imagesDir, 'w.img'), 'abc')
  const digests = createFileDigests(join(site.dir, 'cache.json'))
  const spec = parseSpec(
    'name: a\nmemory: 64MiB\nkernel: none\ndisks: [{file: echo.img, mode: readonly, format: raw}, {file: w.img, mode: writable, format: raw}]',
  )
  const facts = await specFileFacts(spec, site, digests)
  assert.equal(Object.keys(facts), ['readonly/echo.img', 'writable/w.img'])
  assert.equal(facts['readonly/echo.img'], { bytes: 1024 * 1024, root: treeHash(await readFile(join(site.imagesDir, 'echo.img'))) })
  assert.equal(facts['writable/w.img'], { bytes: 3 })
  // A file of another size than the other site's is another one: nothing of it is read.
  const expected = { 'readonly/echo.img': { bytes: 5 } }
  assert.equal((await specFileFacts(spec, site, digests, { expected }))['readonly/echo.img'], { bytes: 1024 * 1024 })
})

test('a missing file is refused, and a qcow2 that is none or needs other files', async () => {
  await using site = await testSite()
  const check = (spec: ReturnType<typeof parseSpec>) => checkSpecFiles(spec, site)
  await check(withDisk('echo.img', 'raw'))
  assert.is(await codeOf(() => check(withDisk('none.img', 'raw'))), 'PREFLIGHT_FILE_MISSING')
  assert.is(await codeOf(() => check(withDisk('echo.img', 'raw', 'shared'))), 'PREFLIGHT_FILE_MISSING')
  assert.is(await codeOf(() => check(withDisk('echo.img', 'qcow2'))), 'VM_SPEC_INVALID')
  const header = Buffer.alloc(112)
  header.writeUInt32BE(0x514649fb, 0)
  header.writeUInt32BE(3, 4)
  const path = join(site.imagesDir, 'd.qcow2')
  await writeFile(path, header)
  await check(withDisk('d.qcow2', 'qcow2'))
  header.writeBigUInt64BE(4n, 72)
  await writeFile(path, header)
  assert.is(await codeOf(() => check(withDisk('d.qcow2', 'qcow2'))), 'VM_SPEC_INVALID')
  header.writeBigUInt64BE(0n, 72)
  header.writeBigUInt64BE(104n, 8)
  await writeFile(path, header)
  assert.is(await codeOf(() => check(withDisk('d.qcow2', 'qcow2'))), 'VM_SPEC_INVALID')
})

test('a shared folder has one id for all who mount it', async () => {
  await using site = await testSite()
  const other = join(site.dir, 'other')
  await mkdir(other)
  const ids = await Promise.all([sharedFolderId(site.imagesDir), sharedFolderId(site.imagesDir), sharedFolderId(other)])
  assert.match(ids[0]!, /^[0-9a-f]{32}$/)
  assert.is(ids[0], ids[1])
  assert.is.not(ids[0], ids[2])
  assert.is(await codeOf(() => sharedFolderId(join(site.dir, 'none'))), 'CONFIG_UNREADABLE')
})

test.run()
