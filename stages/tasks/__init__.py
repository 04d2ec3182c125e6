"""What a training of stage 2 makes from each image, so that the U-Net learns a task: a mask, a
small picture, a damaged picture. It must not import the trainings, generation/ or a script.
"""
