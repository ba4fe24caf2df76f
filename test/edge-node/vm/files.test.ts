import { createHash } from 'node:crypto'
import { mkdir, readFile, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { checkSpecFiles, createFileDigests, sharedFolderId, specFileFacts } from '../../../edge-node/vm/files.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { testSite } from './echo-guest.ts'

const test = suite('edge-node/vm/files')

const sha256 = (data: string | Uint8Array) => createHash('sha256').update(data).digest('hex')
const withDisk = (file: string, format: string, mode = 'readonly') =>
  parseSpec(`name: a\nmemory: 64MiB\ndisks: [{file: ${file}, mode: ${mode}, format: ${format}}]`)

test('digests are right, remembered, and made anew when the file changes', async () => {
  await using site = await testSite()
  const [path, cache] = [join(site.dir, 'f'), join(site.dir, 'cache.json')]
  await writeFile(path, 'one')
  assert.equal(await createFileDigests(cache).facts(path), { bytes: 3, sha256: sha256('one') })
  // A cache that lies, to see that it is used.
  await writeFile(cache, (await readFile(cache, 'utf8')).replace(sha256('one'), 'cafe'))
  assert.is((await createFileDigests(cache).facts(path))?.sha256, 'cafe')
  const digests = createFileDigests(cache)
  await writeFile(path, 'two')
  assert.is((await digests.facts(path))?.sha256, sha256('two'))
  await utimes(path, 1, 1)
  assert.is((await digests.facts(path))?.sha256, sha256('two'))
  await writeFile(cache, 'damaged')
  assert.is((await createFileDigests(cache).facts(path))?.sha256, sha256('two'))
})

test('what is no regular file has no facts', async () => {
  await using site = await testSite()
  const digests = createFileDigests(join(site.dir, 'cache.json'))
  assert.is(await digests.facts(join(site.dir, 'none')), undefined)
  assert.is(await digests.facts(site.dir), undefined)
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
  assert.equal(facts['readonly/echo.img'], { bytes: 1024 * 1024, sha256: sha256(await readFile(join(site.imagesDir, 'echo.img'))) })
  assert.equal(facts['writable/w.img'], { bytes: 3 })
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
