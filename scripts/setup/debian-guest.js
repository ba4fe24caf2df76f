// A whole Debian 12 as a guest of tests and benchmarks: .cache/debian-guest/{disk.raw,vmlinuz,initrd.img}, with
// PostgreSQL, Redis and nginx; it boots from a virtio disk, and root is logged in on ttyS0. Enters: packages of the
// mirror that this machine uses for bookworm. Leaves: the folder, written completely and then renamed. Always holds:
// folder and stamp match; the stamp is a hash of this file, which has the list of packages.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { bookwormLine, installImageTools, mayInstall } from './debian.js'
import { cache, hashFiles, Missing, must, readText, say } from './tools.js'

const PACKAGES = [
  'linux-image-cloud-amd64',
  'systemd-sysv',
  'udev',
  'dbus',
  'postgresql',
  'redis-server',
  'nginx-light',
  'qemu-guest-agent',
]
/** Of the file system in disk.raw, which is sparse; a guest enlarges it to its disk with resize2fs. */
const DISK_SIZE = '2G'
/** Instead of random numbers and the present time, so that two builds from the same packages differ little. */
const UUID = '67f0d217-0000-4000-8000-000000000001'
const EPOCH_SECONDS = '1700000000'

/** Before the packages of PACKAGES are installed: the initrd needs no driver but these, so it is small. */
const EARLY_FILES = {
  'etc/initramfs-tools/conf.d/godwit': 'MODULES=list\n',
  'usr/share/initramfs-tools/modules.d/godwit': 'virtio_pci\nvirtio_blk\next4\n',
}
const FILES = {
  'etc/fstab': '/dev/vda / ext4 defaults,errors=remount-ro 0 1\n',
  'etc/hostname': 'debian-guest\n',
  'etc/hosts': '127.0.0.1 localhost debian-guest\n::1 localhost debian-guest\n',
  'etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf':
    '[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I dumb\n',
  'root/.bash_profile': "export PATH=$PATH:/usr/lib/postgresql/15/bin\nunset PROMPT_COMMAND\nPS1='godwit-guest# '\nPS2=\n",
  // Without it, the shell writes escape sequences around each line.
  'root/.inputrc': 'set enable-bracketed-paste off\n',
  'etc/systemd/journald.conf.d/godwit.conf': '[Journal]\nStorage=volatile\nRuntimeMaxUse=8M\n',
}
/** They would run at moments of their own, and a measurement would show them. */
const MASKED = [
  ...['apt-daily', 'apt-daily-upgrade', 'e2scrub_all', 'fstrim', 'dpkg-db-backup', 'logrotate'].map(name => `${name}.timer`),
  'e2scrub_reap.service',
]

const image = join(cache, 'debian-guest')
const stampText = () => hashFiles([fileURLToPath(import.meta.url)])

/** Whether the guest exists and was built by this version of the script. */
export const debianGuestReady = () =>
  ['disk.raw', 'vmlinuz', 'initrd.img'].every(name => existsSync(join(image, name))) &&
  readText(join(image, 'stamp')).trim() === stampText()

function writeFiles(folder, files) {
  for (const [name, content] of Object.entries(files)) {
    const path = join(folder, name)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, content)
  }
}

/** mmdebstrap, as root in the temporary folder `work`: a tree in work/tree. */
async function bootstrap(work, help) {
  writeFiles(join(work, 'early'), EARLY_FILES)
  writeFiles(join(work, 'files'), FILES)
  writeFileSync(join(work, 'sources.list'), `${await bookwormLine(join(work, 'key.asc'))}\n`)
  const links = MASKED.map(unit => `ln -s /dev/null "$1/etc/systemd/system/${unit}"`).join(' && ')
  const args = [
    ...['--mode=root', '--variant=important', '--skip=check/empty', `--include=${PACKAGES.join(',')}`],
    ...['--aptopt=Acquire::Retries "3"', '--aptopt=APT::Install-Recommends "false"'],
    ...['--dpkgopt=path-exclude=/usr/share/doc/*', '--dpkgopt=path-exclude=/usr/share/man/*', '--dpkgopt=path-exclude=/usr/share/locale/*'],
    `--essential-hook=cp -r "${join(work, 'early')}/." "$1/"`,
    `--customize-hook=cp -r "${join(work, 'files')}/." "$1/"`,
    `--customize-hook=${links}`,
    // The source of this machine's packages is of no use to the guest.
    '--customize-hook=rm -f "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/*',
    ...['bookworm', join(work, 'tree'), join(work, 'sources.list')],
  ]
  await must('mmdebstrap', args, 'the Debian guest', help, { env: { SOURCE_DATE_EPOCH: EPOCH_SECONDS, DEBIAN_FRONTEND: 'noninteractive' } })
}

/** Builds the guest if it is missing or out of date: two to three minutes. Throws Missing. */
export async function buildDebianGuest() {
  if (debianGuestReady()) return
  const help = 'The whole output is in .cache/setup.log.'
  if (process.arch !== 'x64') throw new Missing('the Debian guest', `It is made for amd64 only; this machine is ${process.arch}.`)
  if (!mayInstall())
    throw new Missing('the Debian guest', 'Only root on Debian can build it: run node scripts/setup.js --debian-guest as root.')
  await installImageTools()
  const work = mkdtempSync(join(cache, 'debian-guest-'))
  try {
    say('Debian guest: installing its packages into a folder (about two minutes)')
    await bootstrap(work, help)
    const tree = join(work, 'tree')
    const ready = join(work, 'ready')
    mkdirSync(ready)
    const boot = readdirSync(join(tree, 'boot'))
    for (const name of ['vmlinuz', 'initrd.img']) {
      const file = boot.find(entry => entry.startsWith(`${name}-`))
      if (!file) throw new Missing('the Debian guest', `Its /boot has no ${name}. ${help}`)
      renameSync(join(tree, 'boot', file), join(ready, name))
    }
    say('Debian guest: writing its file system')
    const extended = `hash_seed=${UUID},lazy_itable_init=0,lazy_journal_init=0`
    const args = ['-q', '-F', '-t', 'ext4', '-L', 'godwit', '-U', UUID, '-E', extended, '-d', tree, join(ready, 'disk.raw'), DISK_SIZE]
    await must('/usr/sbin/mke2fs', args, 'the Debian guest', help, { env: { E2FSPROGS_FAKE_TIME: EPOCH_SECONDS } })
    writeFileSync(join(ready, 'stamp'), `${stampText()}\n`)
    rmSync(image, { recursive: true, force: true })
    renameSync(ready, image)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}
