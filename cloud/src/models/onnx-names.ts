/** Names of the graph's input, float32 [batch, height, width, channels], and of its output, float32 [batch, classes]. */
export const onnxNames = { input: 'pixels', output: 'logits' } as const
