// godwit image against the API of a real image store, over a unix socket.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../../cli/run.ts'
import { nodeRoutes } from '../../edge-node/api.ts'
import { createFileDigests } from '../../edge-node/disks/digests.ts'
import { openImages } from '../../edge-node/disks/images.ts'
import { createImports } from '../../edge-node/disks/imports.ts'
import { startHttpServer } from '../../ops/http.ts'
import { EXIT } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: image', { ms: 60_000 })
const skip = spawnSync('qemu-img', ['--version']).status !== 0 && 'qemu-utils is not installed'

async function node() {
  const folder = await tempFolder()
  const imagesDir = join(folder.path, 'images')
  await mkdir(imagesDir)
  const digests = createFileDigests(join(folder.path, 'roots.json'))
  const images = await openImages({
    imagesDir,
    digests,
    usersOf: name => (name === 'used' ? ['web-1'] : []),
    now: Date.now,
    log: silentLog,
  })
  const imports = createImports(images, silentLog)
  const { routes } = nodeRoutes({ registry: { imports } } as never)
  const server = await startHttpServer({ listen: { socketPath: join(folder.path, 'node.sock') }, routes, log: silentLog })
  const godwit = async (...words: string[]) => {
    const io = recordingIo({ env: { GODWIT_SOCKET: join(folder.path, 'node.sock') } })
    return { code: await run(['image', ...words], io), out: io.stdout, err: io.stderr }
  }
  const dispose = async () => {
    await server.close()
    await imports.close()
    await digests.close()
    await folder[Symbol.asyncDispose]()
  }
  return { dir: folder.path, godwit, [Symbol.asyncDispose]: dispose }
}

test(
  'an image is imported, listed, shown and removed',
  async () => {
    await using at = await node()
    const path = join(at.dir, 'debian-12.raw')
    const content = Buffer.alloc(1024 * 1024, 'x')
    await writeFile(path, content)
    assert.match((await at.godwit('list')).out, /no images/)
    const sha256 = createHash('sha256').update(content).digest('hex')
    const imported = await at.godwit('import', path, '--sha256', sha256)
    assert.match(imported.out, /^imported debian-12: 1(\.0+)? MiB, root [0-9a-f]{64}\n$/)
    assert.match((await at.godwit('list')).out, /debian-12 +ready +1(\.0+)? MiB/)
    const shown = JSON.parse((await at.godwit('show', 'debian-12', '--json')).out) as { sourceSha256: string; state: string }
    assert.equal([shown.state, shown.sourceSha256], ['ready', sha256])
    assert.is((await at.godwit('remove', 'debian-12')).out, 'removed debian-12\n')
    assert.match((await at.godwit('list')).out, /no images/)
  },
  { skip },
)

test(
  'what goes wrong ends the command with its code, and is listed until it is removed',
  async () => {
    await using at = await node()
    const path = join(at.dir, 'disk.raw')
    await writeFile(path, Buffer.alloc(1024 * 1024, 'x'))
    const wrong = await at.godwit('import', path, '--name', 'x', '--sha256', '0'.repeat(64))
    assert.is(wrong.code, EXIT.refused)
    assert.match(wrong.err, /IMAGE_MISMATCH/)
    assert.match((await at.godwit('list')).out, /x +failed \(IMAGE_MISMATCH\)/)
    assert.is((await at.godwit('remove', 'x')).code, 0)
    assert.match((await at.godwit('show', 'x')).err, /IMAGE_UNKNOWN/)
    assert.match((await at.godwit('import', path, '--sha256', 'zz')).err, /CONFIG_INVALID.*64 hex digits/s)
    assert.match((await at.godwit('import', path, '--format', 'iso')).err, /USAGE/)
    assert.is((await at.godwit('import', path, '--name', 'used')).code, 0)
    assert.match((await at.godwit('remove', 'used')).err, /IMAGE_IN_USE.*web-1/s)
  },
  { skip },
)

test.run()
