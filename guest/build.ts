// Builds the guest image: node bin/run.js guest/build.ts --parts FOLDER --out FOLDER
// Enters: a folder with `vmlinuz`, `busybox` and `modules/*.ko` (scripts/setup.js puts them there), the sources beside
// this file, a C compiler (CC, or cc). Leaves: `vmlinuz` and `initrd.img` in the out folder, each written completely
// and then renamed. The image contains no library of the host.
import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { gzipSync } from 'node:zlib'
import { type CpioEntry, writeCpio } from './cpio.ts'

const here = fileURLToPath(new URL('.', import.meta.url))

/** No C library, no vector registers (slow on an emulated CPU), no position independence. */
const COMPILER_FLAGS = [
  '-O2',
  '-Wall',
  '-Wextra',
  '-ffreestanding',
  '-nostdlib',
  '-static',
  '-fno-pie',
  '-no-pie',
  '-mgeneral-regs-only',
].concat(['-fno-stack-protector', '-fno-asynchronous-unwind-tables', '-fno-ident', '-Wl,--build-id=none', '-s'])

function compileGuest(): Uint8Array {
  const folder = mkdtempSync(join(tmpdir(), 'godwit-guest-'))
  try {
    const program = join(folder, 'guest')
    execFileSync(process.env['CC'] ?? 'cc', [...COMPILER_FLAGS, '-o', program, join(here, 'guest.c')], {
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    return readFileSync(program)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

function imageEntries(parts: string, guest: Uint8Array): CpioEntry[] {
  const modules = existsSync(join(parts, 'modules')) ? readdirSync(join(parts, 'modules')).sort() : []
  const folders = ['bin', 'dev', 'proc', 'sys', 'lib', 'lib/modules', 'tmp'].map(path => ({ path, kind: 'folder' }) as const)
  return [
    ...folders,
    // The kernel opens /dev/console for the first process before anything is mounted.
    { path: 'dev/console', kind: 'device', major: 5, minor: 1 },
    { path: 'bin/busybox', kind: 'file', executable: true, content: readFileSync(join(parts, 'busybox')) },
    { path: 'bin/sh', kind: 'link', target: 'busybox' },
    { path: 'bin/guest', kind: 'file', executable: true, content: guest },
    { path: 'init', kind: 'file', executable: true, content: readFileSync(join(here, 'init')) },
    ...modules.map(name => ({ path: `lib/modules/${name}`, kind: 'file', content: readFileSync(join(parts, 'modules', name)) }) as const),
  ]
}

const { values: flags } = parseArgs({ options: { parts: { type: 'string' }, out: { type: 'string' } } })
if (!flags.parts || !flags.out) throw new TypeError('usage: guest/build.ts --parts FOLDER --out FOLDER')
mkdirSync(flags.out, { recursive: true })
const image = gzipSync(writeCpio(imageEntries(flags.parts, compileGuest())), { level: 6 })
writeFileSync(join(flags.out, 'initrd.img.new'), image)
copyFileSync(join(flags.parts, 'vmlinuz'), join(flags.out, 'vmlinuz.new'))
for (const name of ['vmlinuz', 'initrd.img']) renameSync(join(flags.out, `${name}.new`), join(flags.out, name))
console.log(`guest image: initrd.img ${Math.round(image.length / 1024)} KiB`)
