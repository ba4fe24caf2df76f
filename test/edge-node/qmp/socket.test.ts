// QEMU's sockets are found by name in a folder that QEMU owns: only what that owner made is connected to.
import { chown, link, mkdir, rename, symlink } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { connectQmp } from '../../../edge-node/qmp/client.ts'
import { connectUnix } from '../../../edge-node/qmp/socket.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/vm/socket')

/** A socket that answers whoever connects. */
async function listen(path: string): Promise<Disposable> {
  const server = createServer(socket => socket.end('heard'))
  await new Promise<void>(resolve => server.listen(path, resolve))
  return { [Symbol.dispose]: () => void server.close() }
}

test('a socket in the folder is connected to, and one that is renamed into place', async () => {
  await using folder = await tempFolder()
  using _ = await listen(join(folder.path, 'first'))
  await rename(join(folder.path, 'first'), join(folder.path, 'qmp.sock'))
  const socket = await connectUnix(join(folder.path, 'qmp.sock'), 5_000)
  const chunks: Buffer[] = []
  for await (const chunk of socket) chunks.push(chunk)
  assert.is(Buffer.concat(chunks).toString(), 'heard')
})

test('a link of that name to a socket elsewhere is not followed', async () => {
  await using folder = await tempFolder()
  const run = join(folder.path, 'run')
  await mkdir(run)
  using _ = await listen(join(folder.path, 'elsewhere'))
  await symlink(join(folder.path, 'elsewhere'), join(run, 'qmp.sock'))
  assert.is(await codeOf(() => connectUnix(join(run, 'qmp.sock'), 5_000)), 'QEMU_UNTRUSTED')
  // At once, not after the time that a QEMU has to come up.
  assert.is(await codeOf(() => connectQmp({ path: join(run, 'qmp.sock'), timeoutMs: 60_000 })), 'QEMU_UNTRUSTED')
})

test("a socket of another user's in the folder is refused", async () => {
  if (process.getuid?.() !== 0) return assert.ok(true, 'only root can give files away')
  await using folder = await tempFolder()
  const run = join(folder.path, 'run')
  await mkdir(run)
  using _ = await listen(join(folder.path, 'elsewhere'))
  await link(join(folder.path, 'elsewhere'), join(run, 'qmp.sock'))
  await chown(run, 70_001, 70_001)
  assert.is(await codeOf(() => connectUnix(join(run, 'qmp.sock'), 5_000)), 'QEMU_UNTRUSTED')
})

test("what is not there, and what does not listen, is the system's own error", async () => {
  await using folder = await tempFolder()
  assert.is(await codeOf(() => connectUnix(join(folder.path, 'nothing'), 5_000)), 'ENOENT')
  const path = join(folder.path, 'deaf')
  const gone = await listen(join(folder.path, 'first'))
  await link(join(folder.path, 'first'), path)
  gone[Symbol.dispose]()
  assert.is(await codeOf(() => connectUnix(path, 5_000)), 'ECONNREFUSED')
})

test.run()
