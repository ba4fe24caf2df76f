// Boots a guest of the benchmark alone and pauses it when it has filled its memory. Always holds: the guest ends when
// it is disposed, or with this process.
import { spawn } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { connectQmp } from '../../edge-node/qmp/client.ts'
import { qmpCommands } from '../../edge-node/qmp/commands.ts'
import { buildArgv, RUNTIME_FILES } from '../../edge-node/vm/argv.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import { guestImage } from '../../guest/image.ts'
import type { Cell, GuestKind } from './cells.ts'
import { specOf } from './spec.ts'
import { watchLogs } from './watch.ts'

const READY_MS = 90_000

export async function bootAlone(dir: string, cell: Cell, guest: GuestKind): Promise<AsyncDisposable & { pid: number }> {
  const image = guestImage()!
  const home = join(dir, 'alone')
  mkdirSync(home)
  await symlink(image.kernel, join(home, 'vmlinuz'))
  await symlink(image.initrd, join(home, 'initrd.img'))
  const argv = buildArgv(parseSpec(specOf(guest, cell)), { imagesDir: home }, { accelerator: 'tcg', incoming: false })
  const child = spawn('qemu-system-x86_64', argv, { cwd: home, stdio: 'ignore' })
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  const kill = () => void child.kill('SIGKILL')
  process.once('exit', kill)
  const dispose = async () => {
    process.off('exit', kill)
    kill()
    await ended
  }
  try {
    const commands = qmpCommands(await connectQmp({ path: join(home, RUNTIME_FILES.qmp), timeoutMs: READY_MS }))
    using watch = watchLogs({ a: join(home, RUNTIME_FILES.serialLog) })
    await commands.cont()
    await watch.until('ready', 'a', READY_MS)
    await commands.stop()
    return { pid: child.pid!, [Symbol.asyncDispose]: dispose }
  } catch (error) {
    await dispose()
    throw error
  }
}
