/**
 * TensorFlow of this thread: on the GPU in a training thread where `@tensorflow/tfjs-node-gpu` loads and finds one, else on
 * the CPU. Serving stays on the CPU: its networks are small, and a GPU would have to be shared with training.
 */
import { existsSync } from 'node:fs'
import { isMainThread } from 'node:worker_threads'
import { rootMessage } from '@frameloop/kit/fault'

interface Opened {
  readonly tf: typeof import('@tensorflow/tfjs-node')
  /** `gpu`, or `cpu` and why it is not the GPU. */
  readonly device: string
}

async function open(): Promise<Opened> {
  let why = 'no GPU'
  if (!isMainThread && existsSync('/dev/nvidia0')) {
    try {
      const { default: tf } = await import('@tensorflow/tfjs-node-gpu')
      await tf.ready()
      // the two packages have the same interface in classes of their own
      if ((tf.backend() as { isUsingGpuDevice?: boolean }).isUsingGpuDevice) return { tf: tf as unknown as Opened['tf'], device: 'gpu' }
      why = 'TensorFlow sees no GPU'
    } catch (thrown) {
      why = `tfjs-node-gpu does not load: ${rootMessage(thrown)}`
    }
  }
  const { default: tf } = await import('@tensorflow/tfjs-node')
  return { tf, device: isMainThread ? 'cpu' : `cpu (${why})` }
}

export const { tf, device } = await open()
