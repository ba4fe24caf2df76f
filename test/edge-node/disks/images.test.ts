// The image store, with the real qemu-img: what is imported is there whole, is what its root says, and never changes.

import { execFileSync, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { readdir, readFile, rename, stat, truncate, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { createFileDigests } from '../../../edge-node/disks/digests.ts'
import { type Images, type ImagesOptions, openImages } from '../../../edge-node/disks/images.ts'
import { silentLog } from '../../../wire/log.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/disks/images', { ms: 60_000 })
const skip = spawnSync('qemu-img', ['--version']).status !== 0 && 'qemu-utils is not installed'
const isRoot = process.getuid?.() === 0

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
const qemuImg = (...args: string[]) => execFileSync('qemu-img', args)

async function store(more: Partial<ImagesOptions> = {}) {
  const folder = await tempFolder()
  const imagesDir = join(folder.path, 'images')
  const digests = createFileDigests(join(folder.path, 'roots.json'))
  execFileSync('mkdir', [imagesDir])
  const options: ImagesOptions = {
    ...{ imagesDir, digests, usersOf: () => [], now: () => 1_800_000_000_000, log: silentLog },
    // As the node runs it: a user who may read none of our folders.
    ...(isRoot ? { user: async () => ({ uid: 70_999, gid: 70_999 }) } : {}),
    ...more,
  }
  const images = await openImages(options)
  const dispose = async () => {
    await digests.close()
    await folder[Symbol.asyncDispose]()
  }
  return { images, imagesDir, dir: folder.path, options, [Symbol.asyncDispose]: dispose }
}

/** 3 MiB: a hole, random bytes, a hole. */
async function rawFile(path: string): Promise<Buffer> {
  const content = Buffer.alloc(3 * MIB)
  randomBytes(100_000).copy(content, MIB + 5)
  await writeFile(path, content)
  return content
}

/** Nothing of an import that failed is left. */
async function isClean(imagesDir: string, images: Images): Promise<void> {
  assert.equal(await images.list(), [])
  assert.equal(
    (await readdir(imagesDir)).filter(name => name !== '.import'),
    [],
  )
  assert.equal(await readdir(join(imagesDir, '.import')).catch(() => []), [])
}

test(
  'a raw file and a qcow2 of the same content are images with the same root, with holes, and nobody may write to them',
  async () => {
    await using at = await store()
    const path = join(at.dir, 'disk.raw')
    const content = await rawFile(path)
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', '-c', path, `${path}.qcow2`)
    const steps = new Set<string>()
    const raw = await at.images.import({ name: 'a', from: path, sha256: sha256(content) }, { onProgress: ({ step }) => steps.add(step) })
    const qcow2 = await at.images.import({ name: 'b', from: `${path}.qcow2`, format: 'qcow2' })
    assert.is(raw.root, qcow2.root)
    assert.equal([raw.sizeBytes, raw.sourceFormat, qcow2.sourceFormat, raw.state], [3 * MIB, 'raw', 'qcow2', 'ready'])
    assert.is(Buffer.compare(await readFile(join(at.imagesDir, 'b')), content), 0)
    assert.ok(raw.allocatedBytes <= 256 * 1024, `${raw.allocatedBytes} bytes are allocated`)
    const { mode, uid } = await stat(join(at.imagesDir, 'a'))
    assert.equal([mode & 0o777, uid], [0o444, process.getuid!()])
    assert.ok(steps.has('reading') && steps.has('hashing'))
    assert.equal(
      (await at.images.list()).map(({ name }) => name),
      ['a', 'b'],
    )
    assert.is((await at.images.use('a')).root, raw.root)
    // A second look finds the same, also after a restart.
    assert.equal(await (await openImages(at.options)).show('a'), raw)
  },
  { skip },
)

test(
  'what is refused names its reason and leaves nothing',
  async () => {
    await using at = await store()
    const path = join(at.dir, 'disk.raw')
    await rawFile(path)
    qemuImg('create', '-q', '-f', 'qcow2', '-b', path, '-F', 'raw', join(at.dir, 'over.qcow2'))
    qemuImg('create', '-q', '-f', 'qcow2', '-o', `data_file=${join(at.dir, 'data')},data_file_raw=on`, join(at.dir, 'outside.qcow2'), '1M')
    await writeFile(join(at.dir, 'empty'), '')
    await writeFile(join(at.dir, 'junk'), Buffer.concat([Buffer.from('514649fb', 'hex'), randomBytes(5000)]))
    const from = (name: string) => join(at.dir, name)
    const cases: [Parameters<Images['import']>[0], string][] = [
      [{ name: 'x', from: path, sha256: '0'.repeat(64) }, 'IMAGE_MISMATCH'],
      [{ name: 'x', from: from('over.qcow2') }, 'IMAGE_INVALID'],
      [{ name: 'x', from: from('outside.qcow2') }, 'IMAGE_INVALID'],
      // It is a regular file, and reading it fails with EIO.
      [{ name: 'x', from: '/proc/self/mem' }, 'DISK_IO'],
      [{ name: 'x', from: path, format: 'qcow2' }, 'IMAGE_INVALID'],
      [{ name: 'x', from: from('junk') }, 'IMAGE_INVALID'],
      [{ name: 'x', from: from('empty') }, 'IMAGE_INVALID'],
      [{ name: 'x', from: from('nothing') }, 'CONFIG_UNREADABLE'],
      [{ name: 'x', from: at.dir }, 'CONFIG_UNREADABLE'],
      [{ name: '../x', from: path }, 'IMAGE_INVALID'],
      [{ name: '.x', from: path }, 'IMAGE_INVALID'],
    ]
    for (const [request, code] of cases) {
      assert.is(await codeOf(() => at.images.import(request)), code, JSON.stringify(request))
      await isClean(at.imagesDir, at.images)
    }
    const stop = new AbortController()
    const why = new Error('no more')
    const stopped = at.images.import({ name: 'x', from: path }, { signal: stop.signal, onProgress: () => stop.abort(why) })
    assert.is(await thrown(() => stopped), why)
    await isClean(at.imagesDir, at.images)
    await writeFile(join(at.imagesDir, 'vmlinuz'), 'a kernel')
    assert.is(await codeOf(() => at.images.import({ name: 'vmlinuz', from: path })), 'IMAGE_EXISTS')
    assert.is(await readFile(join(at.imagesDir, 'vmlinuz'), 'utf8'), 'a kernel')
  },
  { skip },
)

test(
  'an image is imported once: the same content again is the same image, another content is refused',
  async () => {
    await using at = await store({ usersOf: name => (name === 'a' ? ['web'] : []) })
    const path = join(at.dir, 'disk.raw')
    await rawFile(path)
    const first = await at.images.import({ name: 'a', from: path })
    const { ino } = await stat(join(at.imagesDir, 'a'))
    assert.equal(await at.images.import({ name: 'a', from: path }), first)
    assert.is((await stat(join(at.imagesDir, 'a'))).ino, ino, 'the file that VMs may have open stays')
    execFileSync('rm', ['-f', join(at.imagesDir, 'a')])
    assert.equal([(await at.images.show('a')).state, (await at.images.import({ name: 'a', from: path })).state], ['missing', 'ready'])
    await rawFile(path)
    assert.is(await codeOf(() => at.images.import({ name: 'a', from: path })), 'IMAGE_EXISTS')
    assert.is((await at.images.use('a')).root, first.root)
    const both = await Promise.all([
      codeOf(() => at.images.import({ name: 'b', from: path })).catch(() => 'ok'),
      codeOf(() => at.images.import({ name: 'b', from: path })).catch(() => 'ok'),
    ])
    assert.equal(both, ['ok', 'IMAGE_BUSY'])
    assert.is(await codeOf(() => at.images.remove('a')), 'IMAGE_IN_USE')
    await at.images.remove('b')
    assert.is(await codeOf(() => at.images.show('b')), 'IMAGE_UNKNOWN')
    assert.is(await codeOf(() => at.images.remove('b')), 'IMAGE_UNKNOWN')
    assert.is(await codeOf(() => at.images.show('../../etc/passwd')), 'IMAGE_UNKNOWN')
  },
  { skip },
)

test(
  'a file that was changed, replaced or taken away under the name of an image is noticed; a copy with the same content serves',
  async () => {
    await using at = await store()
    const path = join(at.dir, 'disk.raw')
    await rawFile(path)
    await at.images.import({ name: 'a', from: path })
    const file = join(at.imagesDir, 'a')
    execFileSync('cp', ['--sparse=always', file, `${file}.copy`])
    await rename(`${file}.copy`, file)
    assert.is((await at.images.show('a')).state, 'changed')
    assert.is((await at.images.use('a')).path, file)
    await writeFile(join(at.dir, 'other'), randomBytes(3 * MIB))
    await rename(join(at.dir, 'other'), file)
    assert.is(await codeOf(() => at.images.use('a')), 'IMAGE_CHANGED')
    await truncate(file, 5)
    assert.is(await codeOf(() => at.images.use('a')), 'IMAGE_CHANGED')
    execFileSync('rm', ['-f', file])
    assert.is(await codeOf(() => at.images.use('a')), 'IMAGE_CHANGED')
    assert.is((await at.images.show('a')).state, 'missing')
  },
  { skip },
)

test(
  'an image comes from a web server; a wrong status, a cut or endless download and a server that is not there are told',
  async () => {
    await using at = await store()
    const content = await rawFile(join(at.dir, 'disk.raw'))
    const server = createServer((request, response) => {
      if (request.url === '/gone') return response.writeHead(404).end()
      if (request.url === '/round') return response.writeHead(302, { location: '/round' }).end()
      const length = request.url === '/huge' ? 2 ** 50 : content.length
      response.writeHead(200, { 'content-length': length })
      if (request.url !== '/cut') return response.end(content)
      response.write(content.subarray(0, 1000))
      return setTimeout(() => response.destroy(), 20)
    })
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
    try {
      const image = await at.images.import({ name: 'a', from: `${url}/debian.raw?token=secret`, sha256: sha256(content) })
      assert.equal([image.source, image.sourceSha256], ['debian.raw', sha256(content)])
      for (const path of ['/gone', '/cut', '/round'])
        assert.is(await codeOf(() => at.images.import({ name: 'b', from: url + path })), 'CONFIG_UNREADABLE', path)
      assert.is(await codeOf(() => at.images.import({ name: 'b', from: `${url}/huge` })), 'DISK_FULL')
      assert.is(await codeOf(() => at.images.import({ name: 'b', from: `${url}/a`, sha256: '0'.repeat(64) })), 'IMAGE_MISMATCH')
    } finally {
      server.closeAllConnections()
      server.close()
    }
    assert.is(await codeOf(() => at.images.import({ name: 'b', from: `${url}/a` })), 'CONFIG_UNREADABLE')
    assert.equal(
      (await at.images.list()).map(({ name }) => name),
      ['a'],
    )
  },
  { skip },
)

test.run()
