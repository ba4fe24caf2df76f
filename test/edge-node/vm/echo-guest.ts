// A guest of 60 bytes for tests: it writes G to the serial port and echoes each byte that it reads. At a Q it powers
// the machine off, at a P it panics (pvpanic), at an S it suspends the machine (S3), from which it boots anew. It knows
// no power button. And a site to run it at.
import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { within } from '../../../ops/deadline.ts'

// cli; mov dx,3f8h; mov al,'G'; out dx,al next: mov dx,3fdh; in al,dx; test al,1; jz next; mov dx,3f8h; in al,dx; cmp
// al,'Q'; jz off; cmp al,'P'; jz panic; cmp al,'S'; jz sleep; out dx,al; jmp next off: mov dx,604h (PIIX4 PM control,
// where SeaBIOS puts it); mov ax,2000h (sleep, state S5); out dx,ax; jmp $ panic: mov dx,505h; mov al,1; out dx,al; jmp
// next. sleep: mov dx,604h; mov ax,2400h (state S3); out dx,ax; jmp next
const CODE =
  'fa ba f8 03 b0 47 ee ba fd 03 ec a8 01 74 f8 ba f8 03 ec 3c 51 74 0b 3c 50 74 10 3c 53 74 14 ee eb e5 ba 04 06 b8 00 20 ef eb fe ba 05 05 b0 01 ee eb d4 ba 04 06 b8 00 24 ef eb cb'

/** A raw disk of 1 MiB: SeaBIOS does not read one without a single cylinder. */
export function echoDisk(): Uint8Array {
  const disk = new Uint8Array(1024 * 1024)
  disk.set(Buffer.from(CODE.replaceAll(' ', ''), 'hex'))
  disk.set([0x55, 0xaa], 510)
  return disk
}

export const echoSpec = (name: string, more = ''): string =>
  `name: ${name}\nmemory: 32MiB\naccelerator: tcg\ndisks:\n  - {file: echo.img, mode: readonly, format: raw}\n${more}`

/** Why no test with a real QEMU can run here (for `skip`), or undefined. */
export function qemuMissing(): string | undefined {
  try {
    const text = execFileSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8', timeout: 10_000 })
    const major = Number(/version ([0-9]+)/.exec(text)?.[1] ?? 0)
    return major >= 9 ? undefined : `QEMU ${major} is installed, 9 is needed: run node scripts/setup.js`
  } catch {
    return 'qemu-system-x86_64 is not installed: run node scripts/setup.js'
  }
}

export type TestSite = AsyncDisposable & { stateDir: string; imagesDir: string; dir: string }

/** Folders of a site with echo.img among the images; removed when disposed. */
export async function testSite(): Promise<TestSite> {
  const dir = await mkdtemp(join(tmpdir(), 'godwit-vm-'))
  const [stateDir, imagesDir] = [join(dir, 'state'), join(dir, 'images')]
  await mkdir(stateDir)
  await mkdir(imagesDir)
  await writeFile(join(imagesDir, 'echo.img'), echoDisk())
  return { dir, stateDir, imagesDir, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) }
}

/** Reads a console until it has said `text`; gives all that was read. */
export async function heard(follower: AsyncIterable<Uint8Array> & { close(): void }, text: string, ms = 15_000): Promise<string> {
  let all = ''
  const read = async () => {
    for await (const chunk of follower) {
      all += Buffer.from(chunk).toString('latin1')
      if (all.includes(text)) break
    }
    return all
  }
  try {
    return await within(read(), { ms, what: `'${text}' on the console (so far: ${JSON.stringify(all)})` })
  } finally {
    follower.close()
  }
}
